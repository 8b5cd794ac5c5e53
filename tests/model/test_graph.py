from __future__ import annotations

import pytest
import torch

from tests.helpers.tiny import tiny_model, tiny_spec
from unet_batch.model.graph import Graph, fold_batchnorm
from unet_batch.types import ModelSpec


def pictures(count: int = 3, spec: ModelSpec | None = None) -> torch.Tensor:
    height, width = (spec or tiny_spec()).input_size
    return torch.randint(
        0, 256, (count, height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


def by_hand(spec: ModelSpec, batch: torch.Tensor) -> torch.Tensor:
    """The same computation as a textbook writes it: NCHW, scaled to 0..1, normalised, BatchNorm apart."""
    x = batch.permute(0, 3, 1, 2).contiguous().float() / 255
    x = (x - torch.tensor(spec.mean).view(1, 3, 1, 1)) / torch.tensor(spec.std).view(1, 3, 1, 1)
    return tiny_model(spec)(x)


def test_one_class_gives_its_probability() -> None:
    spec = tiny_spec()
    graph = Graph(tiny_model(spec), spec)
    maps = graph(pictures())
    assert maps.dtype == torch.uint8
    assert maps.shape == (3, 32, 48)
    expected = by_hand(spec, pictures())[:, 0].sigmoid() * 255
    assert (maps.float() - expected).abs().max() <= 0.51
    assert maps.float().std() > 5, "the test needs a map that is not flat"


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_several_classes_give_ids(classes: int) -> None:
    spec = tiny_spec(classes=classes)
    ids = Graph(tiny_model(spec), spec)(pictures())
    expected = by_hand(spec, pictures()).argmax(dim=1)
    assert (ids == expected).float().mean() > 0.999
    assert len(ids.unique()) > 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close(dtype: torch.dtype) -> None:
    spec = tiny_spec()
    exact = Graph(tiny_model(spec), spec)(pictures()).float()
    close = Graph(tiny_model(spec), spec, dtype)(pictures()).float()
    assert (exact - close).abs().mean() < 1.5


def test_normalisation_and_head_stay_float32() -> None:
    graph = Graph(tiny_model(tiny_spec()), tiny_spec(), torch.bfloat16)
    assert graph.head.weight.dtype == graph.mean.dtype == graph.scale.dtype == torch.float32
    assert graph.body.down[0][0].weight.dtype == torch.bfloat16


def test_folding_changes_nothing_but_the_layers() -> None:
    model = tiny_model(tiny_spec())
    folded = fold_batchnorm(model)
    x = torch.randn(2, 3, 24, 40)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-5)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules()), (
        "the model itself is left alone"
    )


def test_sizes_that_the_depth_does_not_divide() -> None:
    spec = tiny_spec(size=(30, 47))
    assert Graph(tiny_model(spec), spec)(pictures(1, spec)).shape == (1, 30, 47)


def test_layers_kept_in_float32_compute_with_the_weights_as_they_were() -> None:
    """Not with weights that were halved first: what overflowed or vanished there does not come back."""
    model = tiny_model(tiny_spec())
    with torch.no_grad():
        model.down[1][3].weight /= 1e9  # beyond what float16 can hold
        model.down[1][4].running_var /= 1e18
    exact = Graph(model, tiny_spec())(pictures()).float()
    kept = Graph(model, tiny_spec(), torch.float16, float32=["down.1.3"])
    assert kept.body.down[1][3].layer.weight.dtype == torch.float32
    assert kept.body.down[1][0].layer.weight.dtype == torch.float16
    assert (kept(pictures()).float() - exact).abs().mean() < 1.5
