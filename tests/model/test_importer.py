"""Foreign weights: what is imported computes the same, and what would not is refused.

The sources are computed here a second time, from the names and shapes of their tensors alone.
"""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save as save_tensors
from torch import Tensor

from tests.helpers.public_unets import ARCHS, WIDTHS, State, blocks, source, with_background
from unet_batch.errors import CheckpointError, OutputError, UsageError
from unet_batch.media import geometry, images
from unet_batch.model import checkpoint, importer, zoo
from unet_batch.model.graph import Graph
from unet_batch.model.unet import UNet


def logits(arch: str, state: State, x: Tensor, levels: int = len(WIDTHS)) -> Tensor:
    """What the source's network says, with milesial's padding of odd sizes."""

    def double(name: str, x: Tensor) -> Tensor:
        for conv, norm in ((0, 1), (3, 4)):
            x = F.conv2d(x, state[f"{name}.{conv}.weight"], state.get(f"{name}.{conv}.bias"), padding=1)
            parts = [
                state[f"{name}.{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
            ]
            x = F.relu(F.batch_norm(x, *parts))
        return x

    down, up, head = blocks(arch, levels)
    skips = [double(down[0], x)]
    for name in down[1:]:
        skips.append(double(name, F.max_pool2d(skips[-1], 2)))
    x = skips.pop()
    for upsampling, merge in up:
        skip = skips.pop()
        x = F.conv_transpose2d(x, state[f"{upsampling}.weight"], state[f"{upsampling}.bias"], stride=2)
        rows, columns = skip.shape[2] - x.shape[2], skip.shape[3] - x.shape[3]
        x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        x = double(merge, torch.cat((skip, x), 1))
    return F.conv2d(x, state[f"{head}.weight"], state[f"{head}.bias"])


def written(tmp_path: Path, content: Any, name: str = "weights.pth") -> str:
    torch.save(content, tmp_path / name)
    return str(tmp_path / name)


def imported(tmp_path: Path, content: Any, **options: Any) -> importer.Imported:
    return importer.import_weights(written(tmp_path, content), str(tmp_path / "out.safetensors"), **options)


def refused(
    tmp_path: Path, content: Any, message: str, error: type[Exception] = CheckpointError, **options: Any
) -> str:
    """Importing fails with this message and writes nothing; returns the hint."""
    with pytest.raises(error, match=message) as caught:
        imported(tmp_path, content, **options)
    assert not (tmp_path / "out.safetensors").exists()
    return caught.value.hint  # type: ignore[attr-defined,no-any-return]


@pytest.mark.parametrize("biased", [False, True], ids=["no-bias", "bias"])
@pytest.mark.parametrize("classes", [1, 2, 3])
@pytest.mark.parametrize("arch", ARCHS)
def test_a_checkpoint_computes_what_its_source_does(
    tmp_path: Path, arch: str, classes: int, biased: bool
) -> None:
    state = source(arch, classes, biased=biased)
    found = imported(tmp_path, state)
    loaded = checkpoint.load(found.path)
    assert (found.arch, found.folded) == (arch, biased)
    assert loaded.spec == found.spec
    assert loaded.spec.widths == WIDTHS
    assert loaded.spec.output == ("probability" if classes < 3 else "class_ids")
    assert 0 <= found.difference < 1e-5
    assert found.difference < found.stored_difference < 0.01
    # The checkpoint holds its convolutions in float16, so the source is given the same rounding, and then all
    # must agree.
    rounded = {name: tensor.half().float() if tensor.dim() > 1 else tensor for name, tensor in state.items()}
    for height, width in ((4, 4), (32, 48), (20, 12)):
        x = torch.rand(2, 3, height, width)
        expected = logits(arch, rounded, x)
        if classes == 2:  # background and car; the rounding is that of their difference
            torch.testing.assert_close(loaded.model(x), expected[:, 1:] - expected[:, :1], rtol=0, atol=0.01)
            continue
        assert float((loaded.model(x) - expected).abs().max() / expected.abs().max()) < 1e-5
        assert torch.equal(loaded.model(x).argmax(1), expected.argmax(1))


@pytest.mark.parametrize("arch", ARCHS)
def test_the_differences_reported_are_measured(
    tmp_path: Path, arch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importer, "TOLERANCE", 0.0)
    refused(tmp_path, source(arch), "logits are off by .* of the largest, the limit is 0")


@pytest.mark.parametrize(("channels", "taken"), [(1, None), (4, (1, 2, 3, 4))])
def test_networks_of_other_channels_are_imported(
    tmp_path: Path, channels: int, taken: tuple[int, ...] | None
) -> None:
    spec = checkpoint.load(imported(tmp_path, source("plain", channels=channels)).path).spec
    assert (spec.in_channels, spec.channels) == (channels, taken)


def test_sizes_at_which_the_source_pads_are_refused(tmp_path: Path) -> None:
    """Because there the networks differ: milesial pads inside, ours outside."""
    state = source("milesial")
    hint = refused(
        tmp_path,
        state,
        "size 30x45: both sides must be multiples of 4 for 3 levels",
        UsageError,
        size=(30, 45),
    )
    assert "--size" in hint
    model = checkpoint.load(imported(tmp_path, state).path).model
    x = torch.rand(1, 3, 30, 45)
    expected = logits("milesial", state, x)
    assert float((model(x) - expected).abs().max() / expected.abs().max()) > 0.05


WRAPPED: dict[str, Callable[[State], Any]] = {
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "model_state_dict": lambda state: {"model_state_dict": state, "optimizer": {"lr": 0.1}},
    "model": lambda state: {"model": state, "epoch": 3},
    "two": lambda state: {"state_dict": {"model": state}},
    "module.": lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
    "_orig_mod.module.": lambda state: {f"_orig_mod.module.{name}": tensor for name, tensor in state.items()},
    "model. in state_dict": lambda state: {
        "state_dict": {f"model.{name}": tensor for name, tensor in state.items()}
    },
    "mask_values": lambda state: {**state, "mask_values": [0, 1]},
    "float16": lambda state: {name: tensor.half() for name, tensor in state.items()},
    "old PyTorch": lambda state: {
        name: tensor for name, tensor in state.items() if "num_batches" not in name
    },
}


@pytest.mark.parametrize("wrapped", WRAPPED.values(), ids=WRAPPED)
@pytest.mark.parametrize("arch", ARCHS)
def test_wrappers_and_prefixes(tmp_path: Path, arch: str, wrapped: Callable[[State], Any]) -> None:
    assert imported(tmp_path, wrapped(source(arch))).arch == arch


def test_a_foreign_safetensors_file(tmp_path: Path) -> None:
    (tmp_path / "roads.safetensors").write_bytes(save_tensors(source("plain")))
    found = importer.import_weights(str(tmp_path / "roads.safetensors"), str(tmp_path / "out.safetensors"))
    assert found.spec.name == "roads"


def test_what_the_weights_do_not_say(tmp_path: Path) -> None:
    spec = imported(tmp_path, source("milesial", 2)).spec
    assert (spec.input_size, spec.mean, spec.std) == ((640, 960), (0, 0, 0), (1, 1, 1))
    assert (spec.classes.names, spec.output) == (("car",), "probability")
    (tmp_path / "out.safetensors").unlink()
    options: dict[str, Any] = {
        "size": (32, 48),
        "classes": ("car",),
        "mean": (0.4, 0.5, 0.6),
        "std": (0.2, 0.25, 0.3),
    }
    found = imported(tmp_path, source("plain"), name="mine", **options)
    assert found.assumed == ()
    spec = found.spec
    assert (spec.name, spec.input_size, spec.mean, spec.std) == (
        "mine",
        (32, 48),
        (0.4, 0.5, 0.6),
        (0.2, 0.25, 0.3),
    )
    assert spec.training["imported"]["layout"] == "plain"


class TestTwoOutputs:
    """A background and one class are one probability; two classes are two."""

    @pytest.mark.parametrize(
        ("classes", "names", "foreground"),
        [
            ((), ("car",), 1),
            (("background", "tree"), ("tree",), 1),
            (("tree", "background"), ("tree",), 0),
            (("BG", "tree"), ("tree",), 1),
            (("_background_", "tree"), ("tree",), 1),
            (("none", "road"), ("road",), 1),
            (("0", "1"), ("1",), 1),
            (("car", "void"), ("car",), 0),
            (("cat", "dog"), ("cat", "dog"), None),
            (("empty", "taken"), ("empty", "taken"), None),
        ],
        ids=lambda value: ",".join(value) if isinstance(value, tuple) else "",
    )
    @pytest.mark.parametrize("arch", ARCHS)
    def test_by_the_names(
        self,
        tmp_path: Path,
        arch: str,
        classes: tuple[str, ...],
        names: tuple[str, ...],
        foreground: int | None,
    ) -> None:
        state = source(arch, 2)
        found = imported(tmp_path, state, classes=classes)
        loaded = checkpoint.load(found.path)
        assert loaded.spec == found.spec == checkpoint.identify(found.path).spec
        assert loaded.spec.classes.names == names
        x = torch.rand(1, 3, 32, 48)
        expected, ours = logits(arch, state, x).softmax(1), loaded.model(x)
        if foreground is None:
            assert (loaded.spec.output, found.background) == ("class_ids", "")
            torch.testing.assert_close(ours.softmax(1), expected, rtol=0, atol=0.01)
            return
        assert (loaded.spec.output, loaded.spec.threshold) == ("probability", 0.5)
        assert found.background == (classes or ("background", ""))[1 - foreground]
        torch.testing.assert_close(ours.sigmoid()[:, 0], expected[:, foreground], rtol=0, atol=0.01)

    def test_of_more_the_background_stays_one_of_them_and_black(self, tmp_path: Path) -> None:
        spec = imported(tmp_path, source("plain", 3), classes=("cat", "bg", "dog")).spec
        assert (spec.classes.names, spec.output) == (("cat", "bg", "dog"), "class_ids")
        assert [colour == (0, 0, 0) for colour in spec.classes.colours] == [False, True, False]

    def test_the_class_has_the_colour_of_a_class_alone(self, tmp_path: Path) -> None:
        alone = imported(tmp_path, source("plain", 1)).spec
        (tmp_path / "out.safetensors").unlink()
        assert imported(tmp_path, source("plain", 2)).spec.classes == alone.classes

    def test_the_proof_sees_the_wrong_one_of_two(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        right = UNet.merge_background
        monkeypatch.setattr(UNet, "merge_background", lambda model, one: right(model, 1 - one))
        refused(tmp_path, source("plain", 2), "under our names the network says something else")

    @pytest.mark.parametrize("reverse", [False, True])
    def test_masks_of_photos_are_those_of_the_larger_output(
        self, data: Path, tmp_path: Path, reverse: bool
    ) -> None:
        """At the network's size, to the pixel, but for those whose outputs float16 makes the same."""
        bundled = checkpoint.load(zoo.resolve("classic"))
        state, spec = with_background(bundled.model, "milesial", reverse=reverse), bundled.spec
        names = ("car", "background") if reverse else ("background", "car")
        found = imported(tmp_path, state, classes=names, size=spec.input_size, mean=spec.mean, std=spec.std)
        graph = Graph(checkpoint.load(found.path).model, found.spec)
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (spec.mean, spec.std))
        cars, photos = 0, sorted((data / "carvana/images").glob("*.jpg"))[::200]
        assert len(photos) > 3
        for photo in photos:
            picture = images.read(str(photo))
            tensor = torch.from_numpy(
                geometry.to_network(picture.pixels, geometry.place(picture.size, spec.input_size))
            )
            with torch.inference_mode():
                car = graph(tensor[None])[0] >= 128
                x = (tensor.permute(2, 0, 1)[None].float() / 255 - mean) / std
                theirs = logits("milesial", state, x, len(spec.widths))[0]
            sure = (theirs[1] - theirs[0]).abs() > 0.02
            assert sure.float().mean() > 0.999
            assert torch.equal(car[sure], (theirs.argmax(0) == 1 - reverse)[sure])
            cars += int(car.sum())
        assert cars > 10_000


def test_names_for_another_number_of_classes(tmp_path: Path) -> None:
    refused(tmp_path, source("plain", 3), "outputs: 3, class names given: 2", UsageError, classes=("a", "b"))


class TestProof:
    """Breaks the translation: the comparison must notice."""

    @pytest.mark.parametrize("arch", ARCHS)
    def test_lost_biases(self, tmp_path: Path, arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
        right = importer.rename_tensors

        def wrong(tensors: State, names: dict[str, str], biased: bool) -> State:
            return right(
                {k: v * 0 if k.endswith((".0.bias", ".3.bias")) else v for k, v in tensors.items()},
                names,
                biased,
            )

        monkeypatch.setattr(importer, "rename_tensors", wrong)
        refused(tmp_path, source(arch, biased=True), "under our names the network says something else")

    @pytest.mark.parametrize("arch", ARCHS)
    def test_skip_and_upsampled_exchanged(
        self, tmp_path: Path, arch: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        right = importer.rename_tensors

        def wrong(*arguments: Any) -> State:
            state = right(*arguments)
            state["merge.0.0.weight"] = torch.cat(state["merge.0.0.weight"].chunk(2, 1)[::-1], 1)
            return state

        monkeypatch.setattr(importer, "rename_tensors", wrong)
        refused(tmp_path, source(arch), "under our names the network says something else")

    def test_weights_that_float16_does_not_hold(self, tmp_path: Path) -> None:
        state = source("plain")
        state["downs.0.conv.0.weight"][0] *= 1e6
        state["downs.0.conv.1.running_var"][0] *= 1e12
        refused(tmp_path, state, "stored in float16 the network says something else")


class TestOtherNetworks:
    def test_bilinear_upsampling(self, tmp_path: Path) -> None:
        state = {name: tensor for name, tensor in source("milesial").items() if ".up." not in name}
        hint = refused(tmp_path, state, "milesial's bilinear variant, which import-weights does not know")
        assert "unet_batch.export(network" in hint

    @pytest.mark.parametrize(
        ("names", "whose"),
        [
            (
                ("encoder.layer1.0.conv1", "decoder.blocks.0.conv1.0", "segmentation_head.0"),
                "a network of segmentation_models.pytorch",
            ),
            (
                ("model.encoder.model.conv_stem", "loss.weight", "model.segmentation_head.0"),
                "a network of segmentation_models.pytorch",
            ),
            (
                ("backbone.layer1.0.conv1", "classifier.0.convs.0.0", "classifier.4"),
                "a segmentation network of torchvision",
            ),
            (
                ("backbone.0.0", "classifier.cbr.0", "classifier.low_classifier"),
                "a segmentation network of torchvision",
            ),
            (
                ("segformer.encoder.block.0.0.mlp.dense1", "decode_head.classifier"),
                "a network of mmsegmentation or transformers",
            ),
        ],
    )
    def test_weights_of_another_library_are_named_with_the_way_on(
        self, tmp_path: Path, names: tuple[str, ...], whose: str
    ) -> None:
        state = {f"{name.removesuffix('.weight')}.weight": torch.ones(2, 2, 1, 1) for name in names}
        hint = refused(tmp_path, state, f"the weights of {whose}, which import-weights does not know")
        assert "build that network in Python with these weights, and unet_batch.export(network" in hint
        assert 'docs/import.md, "Weights of another library"' in hint

    @pytest.mark.parametrize("head", ["fc", "classifier.1", "head.fc"])
    def test_a_classifier_gives_no_map(self, tmp_path: Path, head: str) -> None:
        state = {"layer1.0.conv1.weight": torch.ones(2, 2, 1, 1), f"{head}.weight": torch.ones(2, 2)}
        hint = refused(
            tmp_path, state, r"the weights of a classifier of whole pictures \(timm, torchvision\)"
        )
        assert "gives no map of a picture" in hint

    def test_an_unknown_layout(self, tmp_path: Path) -> None:
        state = {f"encoder.{k}.weight": torch.zeros(3) for k in range(9)} | {
            "final_conv.weight": torch.zeros(3)
        }
        hint = refused(tmp_path, state, r"its 10 tensors begin with encoder\.0\.weight, encoder\.1\.weight")
        assert "nearest is plain, which begins with bottleneck.conv.0.weight" in hint

    @pytest.mark.parametrize("arch", ARCHS)
    def test_missing_and_extra_tensors(self, tmp_path: Path, arch: str) -> None:
        state = source(arch)
        down, _, head = blocks(arch, len(WIDTHS))
        del state[f"{down[1]}.4.running_var"]
        state["attention.weight"] = torch.zeros(3)
        refused(
            tmp_path,
            {**source(arch), "attention.weight": torch.zeros(3)},
            rf"{arch} U-Net; not part of it: 1 \(attention",
        )
        missing = rf"tensors missing: 1 \({down[1]}\.4\.running_var\)"
        refused(tmp_path, state, rf"not a {arch} U-Net; {missing}, not part of it: 1 \(attention")
        refused(
            tmp_path,
            {name: tensor for name, tensor in source(arch).items() if head not in name},
            "tensors missing: 2",
        )

    def test_the_wrong_layout_asked_for(self, tmp_path: Path) -> None:
        refused(tmp_path, source("milesial"), "not a plain U-Net", arch="plain")

    @pytest.mark.parametrize("arch", ARCHS)
    def test_other_shapes(self, tmp_path: Path, arch: str) -> None:
        state = source(arch)
        name = f"{blocks(arch, len(WIDTHS))[1][0][0]}.weight"
        refused(
            tmp_path,
            {**state, name: torch.zeros(8, 6, 3, 3)},
            "shapes are not those of a U-Net that can be imported",
        )
        name = f"{blocks(arch, len(WIDTHS))[0][0]}.0.weight"
        refused(tmp_path, {**state, name: torch.zeros(4, 3)}, f"{name} has 2 dimensions")

    def test_values_that_are_not_finite(self, tmp_path: Path) -> None:
        state = source("plain")
        state["final_conv.bias"][0] = float("nan")
        refused(tmp_path, state, r"final_conv\.bias holds values that are not finite")


class Bomb:
    """Makes a folder where it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, (str(self.folder),))


class TestFiles:
    @pytest.mark.parametrize("legacy", [False, True])
    def test_code_is_refused_and_not_executed(self, tmp_path: Path, legacy: bool) -> None:
        buffer = io.BytesIO()
        torch.save(
            {**source("plain"), "bomb": Bomb(tmp_path / "executed")},
            buffer,
            _use_new_zipfile_serialization=not legacy,
        )
        (tmp_path / "x.pth").write_bytes(buffer.getvalue())
        with pytest.raises(
            CheckpointError, match=r"holds Python code \(\w+\.mkdir\), not only weights"
        ) as caught:
            importer.import_weights(str(tmp_path / "x.pth"), str(tmp_path / "out.safetensors"))
        assert "torch.save(model.state_dict()" in caught.value.hint
        assert not (tmp_path / "executed").exists()

    @pytest.mark.parametrize("protocol", [2, 4])
    def test_a_bare_pickle(self, tmp_path: Path, protocol: int) -> None:
        (tmp_path / "x.pth").write_bytes(pickle.dumps(Bomb(tmp_path / "executed"), protocol))
        with pytest.raises(CheckpointError, match=r"holds Python code|not written by torch\.save"):
            importer.import_weights(str(tmp_path / "x.pth"), str(tmp_path / "out.safetensors"))
        assert not (tmp_path / "executed").exists()

    def test_a_pytorch_whose_reader_of_pickles_is_not_safe(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = written(tmp_path, source("plain"))
        monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
        with pytest.raises(CheckpointError, match=r"not read with PyTorch 2\.9\.1\+cpu: before 2\.10"):
            importer.import_weights(path, str(tmp_path / "out.safetensors"))
        (tmp_path / "x.safetensors").write_bytes(save_tensors(source("plain")))
        assert (
            importer.import_weights(str(tmp_path / "x.safetensors"), str(tmp_path / "out.safetensors")).arch
            == "plain"
        )

    def test_a_whole_module(self, tmp_path: Path) -> None:
        refused(tmp_path, torch.nn.Conv2d(1, 1, 1), r"holds Python code \(torch\.nn\.modules\.conv\.Conv2d\)")

    @pytest.mark.parametrize("legacy", [False, True])
    @pytest.mark.parametrize("keep", [0, 0.01, 0.3, 0.9, 0.999])
    def test_a_truncated_file(self, tmp_path: Path, keep: float, legacy: bool) -> None:
        buffer = io.BytesIO()
        torch.save(source("plain"), buffer, _use_new_zipfile_serialization=not legacy)
        size = int(keep * len(buffer.getvalue()))
        (tmp_path / "x.pth").write_bytes(buffer.getvalue()[:size])
        with pytest.raises(
            CheckpointError, match=rf"damaged, or not written by torch\.save \({size:,} bytes\)"
        ):
            importer.import_weights(str(tmp_path / "x.pth"), str(tmp_path / "out.safetensors"))

    def test_a_truncated_safetensors_file(self, tmp_path: Path) -> None:
        (tmp_path / "x.safetensors").write_bytes(save_tensors(source("plain"))[:-100])
        with pytest.raises(CheckpointError, match="damaged"):
            importer.import_weights(str(tmp_path / "x.safetensors"), str(tmp_path / "out.safetensors"))

    def test_a_checkpoint_of_ours(self, tiny: str, tmp_path: Path) -> None:
        with pytest.raises(
            CheckpointError, match="a checkpoint of unet-batch already, nothing to import"
        ) as caught:
            importer.import_weights(tiny, str(tmp_path / "out.safetensors"))
        assert f"unet-batch run ./photos -m {tiny}" in caught.value.hint

    @pytest.mark.parametrize("content", [[1, 2], {}, torch.zeros(3)], ids=["list", "empty", "tensor"])
    def test_no_state_dict(self, tmp_path: Path, content: Any) -> None:
        refused(tmp_path, content, "holds no state dict")

    def test_something_that_is_no_tensor(self, tmp_path: Path) -> None:
        refused(tmp_path, {**source("plain"), "epoch": 3}, "epoch is no ordinary tensor but int")

    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"none\.pth: cannot be read: No such file"):
            importer.import_weights(str(tmp_path / "none.pth"), str(tmp_path / "out.safetensors"))

    def test_nothing_is_overwritten(self, tmp_path: Path) -> None:
        (tmp_path / "out.safetensors").write_text("precious")
        with pytest.raises(OutputError, match="exists already"):
            imported(tmp_path, source("plain"))
        assert (tmp_path / "out.safetensors").read_text() == "precious"
        with pytest.raises(UsageError, match=r"checkpoints are \.safetensors files"):
            importer.import_weights(written(tmp_path, source("plain")), str(tmp_path / "out.pth"))
