"""What of a file becomes the network: whatever people's trainings put around and beside the weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.helpers.public_unets import State, source
from unet_batch.errors import CheckpointError
from unet_batch.model.layouts import LAYOUTS
from unet_batch.model.weights import Weights, read_weights

MARKS = [layout.mark for layout in LAYOUTS.values()]
OWN = source("milesial", 2)
COUNTERS = [name for name in OWN if name.endswith("num_batches_tracked")]
AVERAGE = {name: tensor * 1.25 if tensor.is_floating_point() else tensor for name, tensor in OWN.items()}
STATISTICS = [name for name in OWN if "running" in name]


def read(tmp_path: Path, content: Any, name: str = "weights.pth") -> Weights:
    path = tmp_path / name
    if name.endswith(".safetensors"):
        save_file({name: tensor.clone() for name, tensor in content.items()}, path)
    else:
        torch.save(content, path)
    return read_weights(str(path), MARKS)


def same(found: dict[str, Tensor], expected: State) -> bool:
    expected = {name: tensor for name, tensor in expected.items() if name not in COUNTERS}
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def under(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def without(state: State, *names: str) -> State:
    return {name: tensor for name, tensor in state.items() if name not in names}


def optimizer(state: State) -> dict[str, Any]:
    """What AdamW keeps of a network."""
    parameters = [nn.Parameter(tensor) for tensor in state.values() if tensor.is_floating_point()]
    adam = torch.optim.AdamW(parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    adam.step()
    return adam.state_dict()


ALONE: dict[str, Callable[[], Any]] = {
    "as it is": lambda: OWN,
    "without counters": lambda: without(OWN, *COUNTERS),
    "DataParallel": lambda: under("module.", OWN),
    "compiled": lambda: under("_orig_mod.", OWN),
    "compiled in parallel": lambda: under("module._orig_mod.", OWN),
    "a compiled part": lambda: {name.replace("inc.", "inc._orig_mod."): t for name, t in OWN.items()},
    "FSDP": lambda: under("_fsdp_wrapped_module.", OWN),
    "Lightning": lambda: {"state_dict": under("model.", OWN), "epoch": 3, "loops": {}, "callbacks": {}},
    "Lightning, compiled": lambda: {"state_dict": under("net._orig_mod.", OWN)},
    "deep prefixes": lambda: under("trainer.module.segmenter.backbone.", OWN),
    "deep dictionaries": lambda: {"checkpoint": {"weights": {"model": OWN}}},
    "a list": lambda: {"models": [OWN]},
    "beside an optimizer": lambda: {"model_state_dict": OWN, "optimizer": optimizer(OWN), "epoch": 7},
    "twice the same": lambda: {"model": OWN, "state_dict": under("module.", OWN)},
    "milesial's grey values": lambda: {**OWN, "mask_values": [0, 255]},
}


@pytest.mark.parametrize("content", ALONE.values(), ids=ALONE)
def test_the_only_network_is_found_wherever_it_lies(tmp_path: Path, content: Callable[[], Any]) -> None:
    found = read(tmp_path, content())
    assert same(found.tensors, OWN)
    assert found.notes == ()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_any_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    content = {name: t.to(dtype) if t.is_floating_point() else t for name, t in OWN.items()}
    found = read(tmp_path, content).tensors
    assert all(tensor.dtype == torch.float32 for tensor in found.values())
    assert same(found, {name: tensor.float() for name, tensor in content.items()})


AVERAGED: dict[str, Callable[[], Any]] = {
    "ema_state_dict": lambda: {"ema_state_dict": AVERAGE, "model_state_dict": OWN},
    "state_dict_ema": lambda: {"state_dict": OWN, "state_dict_ema": AVERAGE, "arch": "unet"},
    "model_ema": lambda: {"model": OWN, "model_ema": AVERAGE, "optimizer": optimizer(OWN)},
    "under prefixes": lambda: {"state_dict": {**under("model.", OWN), **under("model_ema.module.", AVERAGE)}},
    "ema-pytorch": lambda: {
        **under("online_model.", OWN),
        **under("ema_model.", AVERAGE),
        "initted": torch.tensor(True),
        "step": torch.tensor(9),
    },
    "one below the other": lambda: {**OWN, **under("ema.", AVERAGE)},
    "a callback": lambda: {"state_dict": OWN, "callbacks": {"EMACallback": {"weights": AVERAGE}}},
    "camel case": lambda: {"net": OWN, "ModelEMA": {"module": AVERAGE}},
    "SWA": lambda: {"model": OWN, "swa_model": {"n_averaged": torch.tensor(4), **under("module.", AVERAGE)}},
    "alone": lambda: {"ema": AVERAGE},
}


@pytest.mark.parametrize("content", AVERAGED.values(), ids=AVERAGED)
def test_the_average_is_taken_and_said(
    tmp_path: Path, content: Callable[[], Any], request: pytest.FixtureRequest
) -> None:
    found = read(tmp_path, content())
    assert same(found.tensors, AVERAGE)
    said = [note for note in found.notes if "the averaged weights, are taken, not " in note]
    assert len(said) == (not request.node.callspec.id.endswith("alone"))


def test_of_an_average_without_statistics_they_are_the_models_own(tmp_path: Path) -> None:
    content = {"model": OWN, "ema": {"decay": 0.999, "shadow": without(AVERAGE, *STATISTICS, *COUNTERS)}}
    found = read(tmp_path, content)
    assert same(found.tensors, {**AVERAGE, **{name: OWN[name] for name in STATISTICS}})
    assert found.notes == (
        "ema.shadow, the averaged weights, are taken, not model",
        "ema.shadow lacks inc.double_conv.1.running_mean, inc.double_conv.1.running_var, "
        "inc.double_conv.4.running_mean, inc.double_conv.4.running_var, ...: these are taken from model",
    )


def test_counters_and_weights_of_a_loss_are_left_out_and_said(tmp_path: Path) -> None:
    swa = {"n_averaged": torch.tensor(5), **under("module.", OWN)}
    found = read(tmp_path, swa)
    assert same(found.tensors, OWN)
    assert found.notes == ("left out: n_averaged, which says that the weights are averaged over 5 models",)
    (note,) = read(tmp_path, {**under("net.", OWN), "loss.weight": torch.ones(2), "epoch": 3}).notes
    assert note == "left out: loss.weight, epoch"


def test_averages_without_names_are_left_out_and_said(tmp_path: Path) -> None:
    shadow = [tensor for tensor in AVERAGE.values() if tensor.is_floating_point()]
    found = read(tmp_path, {"model": OWN, "ema": {"decay": 0.99, "shadow_params": shadow}})
    assert same(found.tensors, OWN)
    (note,) = found.notes
    assert note.startswith("averaged values without names are left out: ema.shadow_params")
    with pytest.raises(CheckpointError, match="no state dict but tensors without names"):
        read(tmp_path, {"shadow_params": shadow})


def test_a_safetensors_file_is_looked_through_as_well(tmp_path: Path) -> None:
    content = {**under("net.", OWN), **under("ema.", AVERAGE), "n_averaged": torch.tensor(5)}
    found = read(tmp_path, content, "weights.safetensors")
    assert same(found.tensors, AVERAGE)
    assert len(found.notes) == 2


OTHER = source("milesial", 2, widths=(2, 4, 6))
CRITIC = {"0.weight": torch.zeros(4, 3, 4, 4), "2.weight": torch.zeros(1, 4, 4, 4)}
SEVERAL: dict[str, tuple[Callable[[], Any], str]] = {
    "two generators": (lambda: {"netG_A": OWN, "netG_B": AVERAGE}, "2 networks.*: netG_A, netG_B"),
    "the best and the last": (lambda: {"best": OWN, "last": AVERAGE}, "2 networks.*: best, last"),
    "two averages": (lambda: {"ema": OWN, "swa": AVERAGE}, "2 networks.*: ema, swa"),
    "an average of another": (lambda: {"model": OWN, "ema": OTHER}, "2 networks.*: model, ema"),
    "a list": (lambda: [OWN, AVERAGE], "2 networks.*: 0, 1"),
    "numbers": (lambda: {"folds": {1: OWN, 2: AVERAGE}}, r"2 networks.*: folds\.1, folds\.2"),
    "one below the other": (
        lambda: {**under("net.", OWN), **under("net.first.", AVERAGE)},
        r"2 networks.*: net, net\.first",
    ),
    "one beside the names of the other": (
        lambda: {**under("first.", AVERAGE), **OWN},
        "2 networks.*: the tensors at the top, first",
    ),
    "generator and discriminator": (
        lambda: {"generator": OWN, "discriminator": CRITIC},
        r"other layers beside the U-Net \(generator\): discriminator\.0\.weight",
    ),
    "in one dictionary": (
        lambda: {**under("generator.", OWN), **under("discriminator.", CRITIC)},
        r"other layers beside the U-Net \(generator\): discriminator\.0\.weight",
    ),
    "a head behind it": (
        lambda: {**under("unet.", OWN), "refine.weight": torch.zeros(2, 2, 3, 3)},
        r"other layers beside the U-Net \(unet\): refine\.weight",
    ),
}


@pytest.mark.parametrize(("content", "message"), SEVERAL.values(), ids=SEVERAL)
def test_which_of_several_is_a_question_with_a_line_that_answers_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Callable[[], Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        read(tmp_path, content())
    monkeypatch.chdir(tmp_path)
    line = caught.value.hint.partition(": ")[2]
    exec(line)
    assert same(read_weights("weights.pth", MARKS).tensors, OWN)


def test_the_line_for_a_safetensors_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="2 networks") as caught:
        read(tmp_path, {**under("a.", OWN), **under("b.", AVERAGE)}, "two.safetensors")
    monkeypatch.chdir(tmp_path)
    exec(caught.value.hint.partition(": ")[2])
    assert same(read_weights("weights.pth", MARKS).tensors, OWN)


def test_a_quantized_network_is_no_network_of_ordinary_tensors(tmp_path: Path) -> None:
    name = "outc.conv.weight"
    with pytest.raises(CheckpointError, match=rf"{name} is no ordinary tensor but torch\.int8"):
        read(tmp_path, {**OWN, name: OWN[name].to(torch.int8)})


def test_a_file_that_holds_itself_ends(tmp_path: Path) -> None:
    content: dict[str, Any] = {"state_dict": OWN}
    content["again"] = content
    assert same(read(tmp_path, content).tensors, OWN)
