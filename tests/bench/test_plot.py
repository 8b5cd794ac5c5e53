"""The bars of a comparison."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from tests.helpers.bench import entry, filled
from unet_batch.bench import plot
from unet_batch.bench.compare import Comparison
from unet_batch.errors import UsageError

pytest.importorskip("matplotlib", reason="the extra train is not installed")


def drawn(*entries: object) -> np.ndarray:
    picture = cv2.imdecode(
        np.frombuffer(plot.draw(Comparison(1.0, "photos", list(entries))), np.uint8),  # type: ignore[arg-type]
        cv2.IMREAD_COLOR,
    )
    assert picture is not None
    return picture


def test_bars_are_as_long_as_they_are_fast() -> None:
    picture = drawn(filled("openvino", 1.0, is_auto=True), filled("torch-cpu", 2.0))
    dark = (np.abs(picture.astype(int) - (0xB0, 0x5D, 0x2A)).sum(2) < 12).sum()
    light = (np.abs(picture.astype(int) - (0xD0, 0xA8, 0x8F)).sum(2) < 12).sum()
    assert dark / light == pytest.approx(2.0, rel=0.1)


def test_what_was_not_measured_has_no_bar() -> None:
    assert drawn(filled("openvino", 1.0), entry("torch-cpu")).shape[2] == 3


def test_without_matplotlib_the_line_for_pip_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plot, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="needs matplotlib") as error:
        plot.require_matplotlib()
    assert error.value.hint == 'pip install "unet-batch[train]"'
