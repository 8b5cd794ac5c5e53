"""A dataset that a tiny network learns in seconds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.helpers.datasets import write_shapes


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pictures in 12 groups, one class."""
    return write_shapes(tmp_path_factory.mktemp("shapes"), 24)


@pytest.fixture(scope="session")
def two_kinds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pictures in 12 groups, three ids."""
    return write_shapes(tmp_path_factory.mktemp("kinds"), 24, classes=2)


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """Layers this small take longer to share between cores than to compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
