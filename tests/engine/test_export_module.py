"""Any network of PyTorch becomes a graph of ours, through either of PyTorch's exporters."""

from __future__ import annotations

import io
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unet_batch
from tests.conftest import ROOT
from unet_batch import scenes
from unet_batch.engine import onnx_model
from unet_batch.engine.importing.importer import import_graph
from unet_batch.engine.importing.settings import Settings
from unet_batch.engine.onnx_model import OnnxRunner
from unet_batch.errors import CheckpointError, UsageError
from unet_batch.model.importer import import_weights

SIZE = (32, 48)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Bilinear(nn.Module):
    """A U-Net of one level that enlarges bilinearly, as milesial's does; gives maps by name."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Conv2d(12, classes, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        skip = self.down(x)
        low = self.deep(F.max_pool2d(skip, 2))
        up = F.interpolate(low, scale_factor=2, mode="bilinear", align_corners=True)
        out = self.head(torch.cat([skip, up], 1))
        return {"out": out * 30, "aux": F.avg_pool2d(out, 4)}


@pytest.fixture(scope="module")
def network() -> Bilinear:
    torch.manual_seed(3)
    made = Bilinear()
    with torch.no_grad():
        maps = made.eval()(normalised())["out"]
        made.head.bias -= maps.mean((0, 2, 3)) / 30
    return made


def pictures() -> Any:
    return np.stack([scenes.draw(70 + number, (64, 96))[0][::2, ::2] for number in range(3)])


def normalised() -> Tensor:
    x = (pictures().astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)
    return torch.from_numpy(x.transpose(0, 3, 1, 2).copy())


def check(graph: bytes, network: Bilinear) -> None:
    """The masks are PyTorch's own."""
    with torch.inference_mode():
        truth = network.eval()(normalised())["out"].softmax(1)[:, 1].numpy()
    maps = OnnxRunner(graph)(pictures())
    assert np.abs(maps / 255 - truth).max() <= 1.5 / 255
    found, mask = maps >= 128, truth >= 127.5 / 255
    assert 0.02 < mask.mean() < 0.98, "the test needs maps that are not flat"
    assert 2 * (found & mask).sum() / (found.sum() + mask.sum()) >= 0.9999


@pytest.mark.slow
def test_a_network_is_exported_and_proven(network: Bilinear, tmp_path: Path) -> None:
    network.train()
    path = tmp_path / "mine.onnx"
    spec = unet_batch.export(
        network, str(path), size=SIZE, classes=("background", "car"), mean=MEAN, std=STD, terms="MIT"
    )
    assert network.training, "left as it was"
    model = onnx_model.read(str(path))
    assert model.spec == spec
    assert (spec.name, spec.classes.names, spec.output) == ("mine", ("car",), "probability")
    assert (spec.terms, spec.mean, model.batch) == ("MIT", MEAN, None)
    assert [c.precision for c in model.convolutions.values()] == ["fp32"] * 3
    check(model.data, network)


def test_the_older_exporter_of_pytorch_is_understood(network: Bilinear, tmp_path: Path) -> None:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is to go
        torch.onnx.export(network.eval(), (normalised()[:1],), file, dynamo=False, opset_version=12)
    (tmp_path / "net.onnx").write_bytes(file.getvalue())
    made = import_graph(
        str(tmp_path / "net.onnx"), str(tmp_path / "mine.onnx"), Settings(classes=("background", "car"))
    )
    assert made.recipe.size == SIZE
    check(made.model.data, network)


def stand_in(monkeypatch: pytest.MonkeyPatch, network: nn.Module) -> None:
    """The older exporter in place of the newer, which takes ten seconds."""
    from unet_batch.engine import export

    def convert(module: nn.Module, example: Tensor, *rest: object) -> Any:
        import onnx

        file = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(module, (example,), file, dynamo=False, opset_version=17)
        return onnx.load_model_from_string(file.getvalue())

    monkeypatch.setattr(export, "_convert", convert)


def test_how_pictures_are_scaled_has_to_be_said(
    network: Bilinear, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, network)
    with pytest.raises(UsageError, match="nothing in the network says how its pictures are scaled") as caught:
        unet_batch.export(network, str(tmp_path / "mine.onnx"), size=SIZE)
    assert "mean=(0, 0, 0), std=(1, 1, 1)" in caught.value.hint
    assert not (tmp_path / "mine.onnx").exists()


def test_a_network_that_gives_no_map_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    stand_in(monkeypatch, network)
    with pytest.raises(CheckpointError, match="gives no map"):
        unet_batch.export(network, str(tmp_path / "mine.onnx"), size=SIZE, mean=MEAN, std=STD)
    assert network.training


@pytest.mark.slow
def test_the_script_of_the_documents_makes_a_model_of_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a library of our own in place of segmentation_models.pytorch."""
    text = (ROOT / "docs/import.md").read_text(encoding="utf-8").partition("## Weights of another library")[2]
    script = text.partition("```python\n")[2].partition("```")[0]

    class Unet(nn.Module):
        def __init__(self, encoder: str, encoder_weights: str | None, classes: int) -> None:
            super().__init__()
            assert (encoder, encoder_weights) == ("resnet34", None)
            self.encoder = nn.Conv2d(3, 4, 3, padding=1)
            self.segmentation_head = nn.Sequential(nn.Conv2d(4, classes, 1))

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.segmentation_head(torch.relu(self.encoder(x)))
            return result

    library = types.ModuleType("segmentation_models_pytorch")
    library.Unet = Unet  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, library.__name__, library)
    monkeypatch.chdir(tmp_path)
    torch.save(Unet("resnet34", None, 1).state_dict(), "best.pth")
    with pytest.raises(CheckpointError, match=r"a network of segmentation_models\.pytorch") as caught:
        import_weights("best.pth", "x.safetensors")
    assert "docs/import.md" in caught.value.hint
    exec(compile(script, "docs/import.md", "exec"), {})
    spec = onnx_model.read("mine.onnx").spec
    assert (spec.classes.names, spec.terms, spec.input_size) == (("road",), "MIT", (512, 512))
    assert spec.mean == MEAN
