"""What a graph says of the memory that a picture takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.foreign import Net
from unet_batch.engine import onnx_model
from unet_batch.engine.importing.importer import import_graph
from unet_batch.engine.importing.settings import Settings
from unet_batch.engine.onnx_model import OnnxModel

MIB = 2**20


def wide(folder: Path, *, free: bool) -> OnnxModel:
    """32 channels at 256x256, 8 MiB, into 32 others; at half the size they are 2 MiB."""
    net = Net((1, 3, "h", "w") if free else (1, 3, 256, 256))
    net.conv(3, 32).conv(32, 32, strides=[2, 2]).conv(32, 1, 1).add("Sigmoid")
    given = Settings(range="0..1", size=(256, 256) if free else None)
    return import_graph(net.save(folder / "net.onnx"), str(folder / "mine.onnx"), given).model


@pytest.mark.parametrize("free", [False, True])
def test_a_picture_takes_what_is_alive_at_once_not_the_sum(tmp_path: Path, free: bool) -> None:
    model = wide(tmp_path, free=free)
    # The picture and its cast are less than 2 MiB; the first layer's values and the second's are 8 + 2.
    assert 10 * MIB <= onnx_model.picture_bytes(model) <= 12.5 * MIB
    if free:
        assert onnx_model.picture_bytes(model, (512, 512)) >= 40 * MIB
