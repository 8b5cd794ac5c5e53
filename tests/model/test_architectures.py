"""What holds of every network, whatever its architecture: one contract from random weights to masks."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from scripts.gpu_check import networks
from tests.helpers.tiny import encoder_spec, tiny_model, tiny_spec
from unet_batch.errors import CheckpointError
from unet_batch.model import checkpoint, pretrained
from unet_batch.model import spec as spec_json
from unet_batch.model.architectures import build_network, count_flops
from unet_batch.model.efficientnet import VARIANTS
from unet_batch.model.encoder_unet import DECODER_WIDTHS, EncoderUNet
from unet_batch.model.graph import Graph, fold_batchnorm
from unet_batch.model.network import SegmentationNetwork
from unet_batch.types import ClassTable, ModelSpec

NETWORKS: dict[str, Callable[..., ModelSpec]] = {
    "unet": tiny_spec,
    **{name: functools.partial(encoder_spec, name) for name in VARIANTS},
}
every_network = pytest.mark.parametrize("name", NETWORKS)
# Variants differ in how often they repeat what they have: what takes long is tried on one of them.
each_kind = pytest.mark.parametrize("name", ["unet", "efficientnet-lite0"])


@functools.cache
def made(name: str, classes: int = 1, in_channels: int = 3) -> tuple[SegmentationNetwork, ModelSpec]:
    """A network, for tests that leave it as it is."""
    values = {"mean": (0.45,) * in_channels, "std": (0.25,) * in_channels}
    spec = NETWORKS[name](classes=classes, in_channels=in_channels, **values)
    return tiny_model(spec), spec


def pictures(height: int, width: int, channels: int = 3, count: int = 2) -> torch.Tensor:
    """uint8 (N, H, W, C), noise over large areas of colour."""
    random = torch.Generator().manual_seed(height * 1000 + width)
    areas = torch.rand((count, channels, 3, 4), generator=random)
    smooth = F.interpolate(areas, (height, width), mode="bilinear")
    noise = torch.rand((count, channels, height, width), generator=random)
    return ((0.8 * smooth + 0.2 * noise) * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


sides = st.integers(1, 100)


@each_kind
@settings(max_examples=12)
@given(height=sides, width=sides, in_channels=st.integers(1, 4), classes=st.sampled_from([1, 2, 5]))
def test_logits_are_as_large_as_any_picture(
    name: str, height: int, width: int, in_channels: int, classes: int
) -> None:
    model, _ = made(name, classes, in_channels)
    with torch.inference_mode():
        logits = model(torch.randn(2, in_channels, height, width))
    assert logits.shape == (2, classes, height, width)
    assert bool(logits.isfinite().all())


@every_network
@pytest.mark.parametrize(("height", "width"), [(1, 1), (31, 33), (65, 40)])
def test_logits_are_as_large_as_a_picture_of_odd_size(name: str, height: int, width: int) -> None:
    assert made(name, 5)[0](torch.randn(1, 3, height, width)).shape == (1, 5, height, width)


@each_kind
@settings(max_examples=10)
@given(height=sides, width=sides)
def test_masks_of_any_size_are_those_of_the_padded_picture(name: str, height: int, width: int) -> None:
    """To the last row and column, where half resolution must not see a border that is none."""
    model, spec = made(name)
    graph, shown = Graph(model, spec).eval(), pictures(height, width)
    bottom, right = -height % spec.stride, -width % spec.stride
    floats = F.pad(shown.permute(0, 3, 1, 2).float(), (0, right, 0, bottom), mode="replicate")
    padded = floats.to(torch.uint8).permute(0, 2, 3, 1)
    with torch.inference_mode():
        maps, whole = graph(shown), graph(padded)[:, :height, :width]
    assert maps.dtype == torch.uint8
    assert maps.shape == (2, height, width)
    assert torch.equal(maps, whole)


@every_network
@pytest.mark.parametrize("classes", [1, 2, 5])
def test_maps_are_probabilities_or_ids_of_the_plain_network(name: str, classes: int) -> None:
    """Of the network as a textbook runs it: NCHW, normalised outside, BatchNorm apart."""
    model, spec = made(name, classes)
    shown = pictures(64, 96)
    with torch.inference_mode():
        maps = Graph(model, spec).eval()(shown)
        logits = model((shown.permute(0, 3, 1, 2).contiguous().float() / 255 - 0.45) / 0.25)
    if classes == 1:
        assert (maps.float() - logits[:, 0].sigmoid() * 255).abs().max() <= 0.52
        assert maps.float().std() > 5, "the test needs maps that are not flat"
    else:
        assert (maps == logits.argmax(1)).float().mean() > 0.999
        assert len(maps.unique()) > 1


@each_kind
def test_a_map_does_not_depend_on_the_rest_of_its_batch(name: str) -> None:
    model, spec = made(name)
    graph, shown = Graph(model, spec).eval(), pictures(40, 70, count=3)
    with torch.inference_mode():
        together = graph(shown).int()
        alone = torch.cat([graph(shown[k : k + 1]) for k in range(3)]).int()
    assert (together - alone).abs().max() <= 1


@every_network
def test_convolutions_are_named_in_the_order_they_run(name: str) -> None:
    """Nodes of an exported graph and layers of the network are matched by it."""
    model = copy.deepcopy(made(name)[0])
    ran: list[str] = []
    for layer, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            module.register_forward_hook(lambda *_, layer=layer: ran.append(layer))
    model(torch.zeros(1, 3, 32, 32))
    assert [*model.convolutions(), "head"] == ran


@every_network
def test_folding_leaves_no_batchnorm_and_the_same_logits(name: str) -> None:
    model, _ = made(name)
    folded, x = fold_batchnorm(model), torch.randn(2, 3, 50, 70)
    with torch.inference_mode():
        exact, same = model(x), folded(x)
    torch.testing.assert_close(same, exact, rtol=1e-3, atol=1e-3)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules()), "it is left alone"


@every_network
@pytest.mark.parametrize("foreground", [0, 1])
def test_background_and_one_class_become_that_classs_probability(name: str, foreground: int) -> None:
    model = copy.deepcopy(made(name, 2)[0])
    x = torch.randn(1, 3, 45, 61)
    with torch.inference_mode():
        expected = model(x).softmax(1)[:, foreground : foreground + 1]
        model.merge_background(foreground)
        torch.testing.assert_close(model(x).sigmoid(), expected, rtol=0, atol=1e-5)
    assert model.out_channels == 1


@each_kind
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_of_the_body_stays_close(name: str, dtype: torch.dtype) -> None:
    model, spec = made(name)
    half, shown = Graph(model, spec, dtype).eval(), pictures(64, 96)
    exact = {f"{name}.layer" for name in model.sensitive()}
    for layer, module in half.body.named_modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            # Where some layers stay float32, each casts what it is given.
            expected = torch.float32 if layer in exact else dtype
            assert {each.dtype for each in module.parameters()} == {expected}, layer
    assert half.head.weight.dtype == half.mean.dtype == half.scale.dtype == torch.float32
    with torch.inference_mode():
        off = (Graph(model, spec).eval()(shown).float() - half(shown).float()).abs()
    assert off.mean() < {torch.float16: 0.5, torch.bfloat16: 4}[dtype]


@each_kind
def test_half_resolution_logits_are_made_and_enlarged_in_float32(name: str) -> None:
    """Rounded to float16 before the threshold, logits would move edges."""
    model, spec = made(name)
    graph, seen = Graph(model, spec, torch.float16).eval(), list[torch.dtype]()
    upsample = graph.body.upsample

    def watched(logits: torch.Tensor, height: int, width: int) -> torch.Tensor:
        seen.append(logits.dtype)
        return upsample(logits, height, width)

    graph.body.upsample = watched  # type: ignore[method-assign]
    graph(pictures(64, 96))
    assert seen == [torch.float32]


@each_kind
def test_any_layer_can_stay_in_float32(name: str) -> None:
    """Also where what it makes is added to, or joined with, what half precision made."""
    model, spec = made(name)
    shown, layers = pictures(64, 96), model.convolutions()
    with torch.inference_mode():
        exact = Graph(model, spec).eval()(shown).float()
        for layer in (layers[0], layers[len(layers) // 2], layers[len(layers) // 2 + 1], layers[-1]):
            kept = Graph(model, spec, torch.float16, float32=[layer]).eval()
            dtypes = {each.dtype for each in kept.body.get_submodule(layer).parameters()}
            assert dtypes == {torch.float32}
            assert (kept(shown).float() - exact).abs().mean() < 0.5, layer


@every_network
def test_every_parameter_learns(name: str) -> None:
    model = build_network(made(name)[1])
    model(torch.randn(2, 3, 64, 64)).square().mean().backward()
    for layer, parameter in model.named_parameters():
        assert parameter.grad is not None, layer
        assert parameter.grad.abs().sum() > 0, layer


@every_network
def test_a_checkpoint_gives_the_network_back(name: str, tmp_path: Path) -> None:
    model, spec = made(name, 5)
    path = str(tmp_path / "model.safetensors")
    checkpoint.save(path, model, spec)
    loaded, told = checkpoint.load(path), checkpoint.identify(path)
    assert loaded.spec == told.spec == spec
    assert type(loaded.model) is type(model)
    assert not loaded.model.training
    assert told.parameters == sum(each.numel() for each in model.parameters())
    rounded = copy.deepcopy(model)
    exact = {f"{layer}.weight" for layer in model.stored_exactly()}
    for layer, parameter in rounded.named_parameters():
        if parameter.dim() > 1 and layer not in exact:
            parameter.data = parameter.half().float()
    with torch.inference_mode():
        x = torch.randn(1, 3, 45, 61)
        assert torch.equal(loaded.model(x), rounded(x))


@every_network
def test_a_spec_that_says_otherwise_is_refused(name: str, tmp_path: Path) -> None:
    model, spec = made(name)
    wrong: list[ModelSpec] = [
        replace(spec, in_channels=4),
        replace(spec, classes=ClassTable(("a", "b", "c"), ((0, 0, 0),) * 3)),
        replace(spec, widths=(*spec.widths[:-1], 7)),
        *(other for kind in NETWORKS if kind != name for other in [made(kind)[1]]),
    ]
    for other in wrong:
        with pytest.raises(CheckpointError, match=r"the spec says .* the network has"):
            checkpoint.save(str(tmp_path / "x.safetensors"), model, other)
    assert not list(tmp_path.iterdir())


@every_network
def test_stride_is_that_of_its_spec(name: str) -> None:
    """Sizes of engines are checked by the spec, which knows no PyTorch."""
    model, spec = made(name)
    assert model.stride == spec.stride


class TestVersions:
    """What reads which file."""

    @pytest.fixture
    def new(self, tmp_path: Path) -> str:
        path = str(tmp_path / "new.safetensors")
        checkpoint.save(path, *made("efficientnet-lite0"))
        return path

    def test_a_program_that_knows_no_encoders_asks_for_an_update(
        self, new: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(checkpoint, "VERSION", 1)
        for read in (checkpoint.identify, checkpoint.load):
            with pytest.raises(
                CheckpointError, match="checkpoint version 2, this program reads up to 1"
            ) as told:
                read(new)
            assert "pip install --upgrade unet-batch" in told.value.hint

    def test_classic_networks_stay_readable_by_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = str(tmp_path / "classic.safetensors")
        checkpoint.save(path, *made("unet"))
        monkeypatch.setattr(checkpoint, "VERSION", 1)
        assert checkpoint.load(path).spec == made("unet")[1]

    def test_descriptions_of_before_encoders_are_classic_networks(self) -> None:
        spec = tiny_spec(3)
        before = json.loads(spec_json.dumps(spec))
        assert before.pop("architecture") == "unet"
        assert before.pop("encoder") == ""
        assert spec_json.loads(json.dumps(before)) == spec

    def test_weights_of_another_encoder_do_not_fit(self, new: str, monkeypatch: pytest.MonkeyPatch) -> None:
        other = replace(made("efficientnet-lite0")[1], encoder="efficientnet-lite2")
        monkeypatch.setattr(checkpoint, "_read_spec", lambda path, metadata: other)
        with pytest.raises(CheckpointError, match="do not fit the file's own description"):
            checkpoint.load(new)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architecture": "transformer"},
            "architecture: 'unet', 'encoder-unet' or 'onnx' expected, got 'transformer'",
        ),
        ({"architecture": "unet"}, "encoder: none expected of a 'unet', got 'efficientnet-lite0'"),
        ({"encoder": "resnet50"}, "encoder: one of efficientnet-lite0, .* expected, got 'resnet50'"),
        ({"encoder": ""}, "encoder: one of efficientnet-lite0, .* expected, got ''"),
        ({"encoder": None}, "encoder: one of .* expected, got None"),
        ({"widths": [8, 8, 8]}, "widths: 4 levels of the decoder expected, got 3"),
        ({"widths": []}, "widths: 1 to 8 levels expected, got 0"),
        ({"architecture": "onnx"}, "widths: none expected of an imported graph, got 4"),
        ({"architecture": "onnx", "widths": []}, "encoder: none expected of an imported graph, got 'eff"),
    ],
)
def test_a_description_that_cannot_be_is_refused_by_field(changes: dict[str, object], message: str) -> None:
    text = json.dumps({**json.loads(spec_json.dumps(encoder_spec())), **changes})
    with pytest.raises(CheckpointError, match=message):
        spec_json.loads(text)


def test_an_imported_graph_has_a_description_and_no_network() -> None:
    spec = tiny_spec(architecture="onnx", widths=(), size=(513, 257))
    assert spec_json.loads(spec_json.dumps(spec)) == spec
    assert (spec.network, spec.stride) == ("imported ONNX graph", 1)
    with pytest.raises(CheckpointError, match="tiny is an imported ONNX graph: there is no PyTorch network"):
        build_network(spec)
    with pytest.raises(CheckpointError, match="the spec says"):
        checkpoint.save("nowhere.safetensors", made("unet")[0], spec)


def test_what_a_spec_may_say_is_what_can_be_built() -> None:
    """Names are listed twice: reading a spec needs no PyTorch."""
    assert tuple(VARIANTS) == spec_json.ENCODERS
    assert len(DECODER_WIDTHS) == spec_json.DECODER_LEVELS


@given(st.sampled_from(sorted(NETWORKS)), st.integers(1, 5), st.integers(1, 64))
def test_any_description_survives_the_round_trip(name: str, classes: int, in_channels: int) -> None:
    spec = NETWORKS[name](
        classes=classes, in_channels=in_channels, mean=(0.5,) * in_channels, std=(0.2,) * in_channels
    )
    assert spec_json.loads(spec_json.dumps(spec)) == spec


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widths": (8, 8, 8)}, "four widths"),
        ({"widths": (8, 8, 8, 0)}, "four widths"),
        ({"in_channels": 0}, "got in=0"),
        ({"encoder": "vgg16"}, "encoder 'vgg16': expected one of efficientnet-lite0"),
    ],
)
def test_networks_that_cannot_be_built_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EncoderUNet(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["efficientnet-lite0"])
def test_a_file_moves_the_maps_of_published_weights_by_one_level_at_most(name: str, tmp_path: Path) -> None:
    """Of the published weights some are so large that float16 loses what their sum depends on."""
    torch.manual_seed(3)
    spec = replace(made(name)[1], mean=pretrained.MEAN, std=pretrained.STD, widths=DECODER_WIDTHS)
    model = build_network(spec).eval()
    assert isinstance(model, EncoderUNet)
    path = pretrained.find_weights(name)
    model.encoder.load_state_dict(pretrained.read_encoder(path, name).tensors)
    shown = pictures(96, 128)
    with torch.inference_mode():
        deviation = model(shown.permute(0, 3, 1, 2) / 255).std()
        model.head.weight *= 3 / deviation  # logits as of a network that was trained
        checkpoint.save(str(tmp_path / "m.safetensors"), model, spec)
        stored = checkpoint.load(str(tmp_path / "m.safetensors"))
        maps = [Graph(each, spec).eval()(shown).int() for each in (model, stored.model)]
    assert len(maps[0].unique()) > 100
    assert int((maps[0] - maps[1]).abs().max()) <= 1


@pytest.mark.parametrize(
    "spec", [tiny_spec(), tiny_spec(classes=3), encoder_spec()], ids=["one", "three", "encoder"]
)
def test_flops_are_those_of_the_convolutions(spec: ModelSpec) -> None:
    assert count_flops(spec, spec.input_size) == networks.flops(spec)
    doubled = spec.input_size[0] * 2, spec.input_size[1] * 2
    assert count_flops(spec, doubled) == 4 * networks.flops(spec)
