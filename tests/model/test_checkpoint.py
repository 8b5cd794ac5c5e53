from __future__ import annotations

import io
import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from tests.helpers.tiny import tiny_model, tiny_spec
from unet_batch.errors import CheckpointError
from unet_batch.model import checkpoint
from unet_batch.model import spec as spec_json
from unet_batch.model.graph import Graph
from unet_batch.scenes import compose
from unet_batch.types import ClassTable, ModelSpec


def metadata(path: str) -> dict[str, str]:
    data = Path(path).read_bytes()
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]


def rewrite(path: str, **changes: str) -> None:
    tensors = load_tensors(Path(path).read_bytes())
    Path(path).write_bytes(save_tensors(tensors, {**metadata(path), **changes}))


def test_round_trip(tmp_path: Path) -> None:
    spec = tiny_spec(classes=3, training={"dice": 0.99, "cars": ["a", "b"]}, threshold=0.4)
    model = tiny_model(spec)
    path = str(tmp_path / "model.safetensors")
    checkpoint.save(path, model, spec)
    loaded = checkpoint.load(path)
    assert loaded.spec == checkpoint.identify(path).spec == spec
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    for name, tensor in model.state_dict().items():
        copy = loaded.model.state_dict()[name]
        expected = tensor.half().to(copy.dtype) if tensor.dim() > 1 else tensor
        assert torch.equal(copy, expected), name
    x = torch.randn(1, 3, 32, 48)
    torch.testing.assert_close(loaded.model(x), model(x), rtol=0.02, atol=0.02)


def test_weights_of_16_bits_move_the_map_of_a_drawn_picture_by_a_level_at_most(tmp_path: Path) -> None:
    spec, path = tiny_spec(size=(96, 144)), str(tmp_path / "model.safetensors")
    model = tiny_model(spec)
    checkpoint.save(path, model, spec)
    picture = torch.from_numpy(compose.draw(3, spec.input_size)[0])[None]
    before, after = (Graph(each, spec)(picture).int() for each in (model, checkpoint.load(path).model))
    assert before.float().std() > 30
    assert 0 < (before - after).abs().max() <= 1


class TestSharing:
    """A checkpoint that takes the weights of another one beside it."""

    def write(self, folder: Path) -> tuple[str, str]:
        own, sharing = str(folder / "own.safetensors"), str(folder / "sharing.safetensors")
        spec = tiny_spec(size=(32, 48))
        checkpoint.save(own, tiny_model(spec), spec)
        checkpoint.share(sharing, "own.safetensors", replace(spec, name="other", input_size=(64, 96)))
        return own, sharing

    def test_has_the_weights_and_its_own_spec(self, tmp_path: Path) -> None:
        own, sharing = self.write(tmp_path)
        one, other = checkpoint.load(own), checkpoint.load(sharing)
        weights = other.model.state_dict()
        assert all(torch.equal(weights[name], tensor) for name, tensor in one.model.state_dict().items())
        assert (other.spec.name, other.spec.input_size) == ("other", (64, 96))
        found = checkpoint.identify(sharing)
        assert (found.spec, found.sha256, found.path) == (other.spec, other.sha256, other.path)
        assert found.parameters == checkpoint.identify(own).parameters
        assert os.path.getsize(sharing) < 3000

    def test_is_another_model_than_the_other_one_and_with_other_weights(self, tmp_path: Path) -> None:
        own, sharing = self.write(tmp_path)
        before = checkpoint.identify(sharing).sha256
        assert before != checkpoint.identify(own).sha256
        model = tiny_model(tiny_spec())
        with torch.no_grad():
            model.head.bias += 1
        checkpoint.save(own, model, tiny_spec())
        assert checkpoint.identify(sharing).sha256 != before

    def test_alone_it_is_useless_and_says_so(self, tmp_path: Path) -> None:
        own, sharing = self.write(tmp_path)
        os.remove(own)
        for read in (checkpoint.identify, checkpoint.load):
            with pytest.raises(CheckpointError, match=r"takes the weights of own\.safetensors, which is not"):
                read(sharing)

    @pytest.mark.parametrize("name", ["../own.safetensors", "own.safetensors/", ""])
    def test_weights_lie_in_its_folder(self, tmp_path: Path, name: str) -> None:
        folder = tmp_path / "in"
        folder.mkdir()
        self.write(tmp_path)
        with pytest.raises(CheckpointError, match="which is not beside it"):
            checkpoint.share(str(folder / "x.safetensors"), name, tiny_spec())

    def test_those_of_another_network_are_refused(self, tmp_path: Path) -> None:
        self.write(tmp_path)
        with pytest.raises(CheckpointError, match=r"cannot take the weights of own\.safetensors"):
            checkpoint.share(str(tmp_path / "x.safetensors"), "own.safetensors", tiny_spec(classes=3))

    def test_older_programs_refuse_it(self, tmp_path: Path) -> None:
        _, sharing = self.write(tmp_path)
        assert metadata(sharing)["version"] == "2"


def two_classes(*names: str, **changes: object) -> ModelSpec:
    return replace(tiny_spec(2, **changes), classes=ClassTable(names, ((0, 0, 0), (9, 8, 7))))


class TestBackgroundAndOneClass:
    """What earlier releases trained and imported as two classes is one probability."""

    @pytest.mark.parametrize("names", [("background", "car"), ("car", "BG")])
    def test_is_read_as_one_probability(self, tmp_path: Path, names: tuple[str, str]) -> None:
        path = str(tmp_path / "two.safetensors")
        spec = two_classes(*names, threshold=0.3)
        checkpoint.save(path, tiny_model(spec), spec)
        one = checkpoint.load(path)
        car = names.index("car")
        table = ClassTable(("car",), (spec.classes.colours[car],))
        assert one.spec == checkpoint.identify(path).spec
        assert one.spec == replace(spec, classes=table, output="probability", threshold=0.5)
        model = tiny_model(spec)
        for name, tensor in load_tensors(Path(path).read_bytes()).items():
            model.state_dict()[name].copy_(tensor)
        x = torch.rand(1, 3, 30, 45)
        expected = model(x).softmax(1)[:, car : car + 1]
        torch.testing.assert_close(one.model(x).sigmoid(), expected, rtol=0, atol=1e-6)
        checkpoint.save(str(tmp_path / "again.safetensors"), one.model, one.spec)
        assert checkpoint.load(str(tmp_path / "again.safetensors")).spec == one.spec

    @pytest.mark.parametrize("names", [("background", "car"), ("car", "background")])
    def test_masks_are_those_of_the_larger_output_to_the_pixel(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, str]
    ) -> None:
        """But for ties, which are the class, as all that reaches a threshold is."""
        path, spec, car = str(tmp_path / "two.safetensors"), two_classes(*names), names.index("car")
        checkpoint.save(path, tiny_model(spec), spec)
        one = checkpoint.load(path)
        monkeypatch.setattr(ClassTable, "foreground", None)
        before = checkpoint.load(path)
        assert (one.spec.output, before.spec.output) == ("probability", "class_ids")
        pictures = torch.randint(0, 256, (8, 64, 96, 3), dtype=torch.uint8)
        map, ids = Graph(one.model, one.spec)(pictures), Graph(before.model, before.spec)(pictures)
        assert torch.equal(map >= 128, ids == car)
        assert 0.2 < float((ids == car).float().mean()) < 0.8

    @pytest.mark.parametrize("names", [("cat", "dog"), ("ground", "tree"), ("sky", "road")])
    def test_two_real_classes_stay_two(self, tmp_path: Path, names: tuple[str, str]) -> None:
        path, spec = str(tmp_path / "two.safetensors"), two_classes(*names)
        checkpoint.save(path, tiny_model(spec), spec)
        assert checkpoint.load(path).spec == checkpoint.identify(path).spec == spec


@pytest.mark.parametrize(
    ("names", "background", "foreground"),
    [
        (("car",), None, None),
        (("background",), None, None),
        (("background", "car"), 0, 1),
        (("car", "Background"), 1, 0),
        (("void", "background"), 1, 0),
        (("cat", "dog"), None, None),
        (("car", "background", "void"), 1, None),
        (("0", "1", "background"), 2, None),
        (("__background__", "car", "tree"), 0, None),
    ],
)
def test_which_class_is_the_background(
    names: tuple[str, ...], background: int | None, foreground: int | None
) -> None:
    table = ClassTable(names, ((0, 0, 0),) * len(names))
    assert (table.background, table.foreground) == (background, foreground)


def test_convolutions_are_stored_in_half_and_statistics_are_not(tiny: str) -> None:
    dtypes = {name: tensor.dtype for name, tensor in load_tensors(Path(tiny).read_bytes()).items()}
    assert dtypes["down.0.0.weight"] == torch.float16
    assert dtypes["down.0.1.running_var"] == torch.float32


def test_sha256_is_of_the_file(tiny: str) -> None:
    import hashlib

    assert checkpoint.load(tiny).sha256 == hashlib.sha256(Path(tiny).read_bytes()).hexdigest()


def test_a_spec_of_another_network_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"\('', 3, 2, \(4, 8, 16\)\), the network has \('', 3, 1, \(4, 8, 16\)\)"
    ):
        checkpoint.save(str(tmp_path / "x.safetensors"), tiny_model(tiny_spec()), tiny_spec(classes=2))


@settings(max_examples=25, deadline=None)
@given(keep=st.floats(0, 0.999))
def test_a_truncated_file_says_so(tmp_path_factory: pytest.TempPathFactory, keep: float) -> None:
    path = tmp_path_factory.mktemp("cut") / "tiny.safetensors"
    checkpoint.save(str(path), tiny_model(tiny_spec()), tiny_spec())
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(CheckpointError, match="damaged or not a safetensors file") as caught:
        checkpoint.load(str(path))
    if keep > 0.5:
        assert f"promises {len(data):,} bytes" in caught.value.hint


def test_a_foreign_safetensors_file(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    path.write_bytes(save_tensors({"weight": torch.zeros(3)}))
    with pytest.raises(CheckpointError, match="not a checkpoint of unet-batch") as caught:
        checkpoint.load(str(path))
    assert "unet-batch import-weights FILE.safetensors -o MODEL.safetensors" in caught.value.hint


def test_text_is_not_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "notes.safetensors"
    path.write_text("these are not weights\n" * 10)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        checkpoint.load(str(path))


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (pytest.fail, ("the pickle was executed",))


@pytest.mark.parametrize("kind", ["torch.save", "pickle"])
def test_a_pickle_is_recognised_and_never_opened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.pth"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Bomb()))
    else:
        buffer = io.BytesIO()
        torch.save({"weight": torch.zeros(3), "bomb": Bomb()}, buffer)
        path.write_bytes(buffer.getvalue())
    with pytest.raises(CheckpointError, match="a pickled PyTorch file") as caught:
        checkpoint.load(str(path))
    assert "unet-batch import-weights FILE.pth -o MODEL.safetensors" in caught.value.hint


def test_a_header_whose_length_looks_like_a_pickle(tmp_path: Path) -> None:
    """The first byte of a safetensors file is the lowest of its header's length, 0x80 for one in 32."""
    path = tmp_path / "model.safetensors"
    filler = 0
    for _ in range(2):
        spec = tiny_spec(training={"filler": "x" * filler})
        checkpoint.save(str(path), tiny_model(spec), spec)
        filler = (0x80 - path.read_bytes()[0]) % 256
    assert path.read_bytes()[0] == 0x80
    assert checkpoint.load(str(path)).spec == spec


def test_a_newer_version_asks_for_an_update(tiny: str) -> None:
    rewrite(tiny, version="3")
    with pytest.raises(CheckpointError, match="checkpoint version 3, this program reads up to 2") as caught:
        checkpoint.load(tiny)
    assert "upgrade" in caught.value.hint


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such model file"):
        checkpoint.load(str(tmp_path / "none.safetensors"))
    with pytest.raises(CheckpointError, match="cannot be read: Is a directory"):
        checkpoint.load(str(tmp_path))


def test_weights_of_another_shape(tiny: str) -> None:
    other = tiny_spec(widths=(4, 8, 12))
    rewrite(tiny, spec=spec_json.dumps(other))
    with pytest.raises(CheckpointError, match="the weights do not fit the file's own description"):
        checkpoint.load(tiny)


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    model = tiny_model(tiny_spec())
    with torch.no_grad():
        model.head.weight[0, 0] = float("nan")
    path = str(tmp_path / "nan.safetensors")
    checkpoint.save(path, model, tiny_spec())
    with pytest.raises(CheckpointError, match=r"head\.weight holds values that are not finite"):
        checkpoint.load(path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("widths", [10**9], "widths: a whole number from 1 to 4096"),
        ("widths", [], "1 to 8 levels"),
        ("in_channels", True, "in_channels: a whole number"),
        ("input_size", [160], "not enough values"),
        ("mean", [0.5], "3 values each"),
        ("std", [0.5, 0.5, 0], "std above 0"),
        ("threshold", 0, "threshold: above 0"),
        ("threshold", "high", "threshold: a finite number"),
        ("classes", {"names": ["a", "b"], "colours": [[1, 2, 3]]}, "2 names and 1 colours"),
        ("classes", {"names": ["a"], "colours": [[1, 2, 300]]}, "colours: a whole number"),
        ("output", "class_ids", "output: 1 class"),
        ("training", [], "training: an object"),
        ("training", {"channels": [1, 2]}, "channels: 3 numbers of bands"),
        ("training", {"channels": [0, 1, 2]}, "channels: a whole number from 1"),
        ("terms", ["CC0"], "terms: one line of text"),
        ("terms", "CC0\nand more", "terms: one line of text"),
    ],
)
def test_a_bad_description_names_the_field(tiny: str, field: str, value: object, message: str) -> None:
    rewrite(tiny, spec=json.dumps({**json.loads(metadata(tiny)["spec"]), field: value}))
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(tiny)


def test_a_missing_field_is_named(tiny: str) -> None:
    spec = json.loads(metadata(tiny)["spec"])
    del spec["mean"]
    rewrite(tiny, spec=json.dumps(spec))
    with pytest.raises(CheckpointError, match="field 'mean' is missing"):
        checkpoint.load(tiny)


def test_a_description_nested_too_deeply(tiny: str) -> None:
    rewrite(tiny, spec="[" * 100_000)
    with pytest.raises(CheckpointError, match="description is not valid"):
        checkpoint.load(tiny)


def test_terms_of_files_that_name_none_are_not_known(tiny: str) -> None:
    spec = json.loads(metadata(tiny)["spec"])
    del spec["terms"]
    rewrite(tiny, spec=json.dumps(spec))
    assert checkpoint.load(tiny).spec.terms == checkpoint.identify(tiny).as_dict()["terms"] == ""


class TestInheritedTerms:
    def start(self, terms: str = "non-commercial: b") -> ModelSpec:
        return tiny_spec(terms=terms)

    def test_of_a_model_from_noise_are_those_of_its_data(self) -> None:
        assert spec_json.inherit_terms("  CC0:\n a ", None) == "CC0: a"
        assert spec_json.inherit_terms("", None) == ""

    @pytest.mark.parametrize("own", ["", " \n", "non-commercial: b"])
    def test_are_kept_where_nothing_is_added(self, own: str) -> None:
        assert spec_json.inherit_terms(own, self.start()) == "non-commercial: b"

    def test_stand_behind_the_data_s_own(self) -> None:
        once = spec_json.inherit_terms("CC0: a", self.start())
        assert once == "CC0: a; started from tiny: non-commercial: b"
        assert spec_json.inherit_terms("CC0: a", self.start(once)) == once, "a second phase adds nothing"

    def test_that_nobody_knows_are_said_to_be_so(self) -> None:
        assert spec_json.inherit_terms("CC0: a", self.start("")) == (
            "CC0: a; started from tiny: its terms are not known"
        )
        assert spec_json.inherit_terms("", self.start("")) == ""

    @given(st.text(), st.one_of(st.none(), st.text(max_size=30).map(lambda text: " ".join(text.split()))))
    def test_can_be_stored_and_never_lose_those_of_the_start(self, own: str, before: str | None) -> None:
        start = None if before is None else self.start(before)
        terms = spec_json.inherit_terms(own, start)
        assert terms.endswith(before or "")
        spec = tiny_spec(terms=terms)
        assert spec_json.loads(spec_json.dumps(spec)) == spec


names = st.text(min_size=1, max_size=10)


@given(
    st.lists(names, min_size=1, max_size=6),
    st.floats(0.001, 1),
    st.dictionaries(names, st.one_of(st.integers(), names, st.lists(names))),
)
def test_any_spec_survives_the_round_trip(
    classes: list[str], threshold: float, training: dict[str, object]
) -> None:
    table = ClassTable(tuple(classes), tuple((1, 2, 3) for _ in classes))
    spec = replace(tiny_spec(len(classes), threshold=threshold, training=training), classes=table)
    assert spec_json.loads(spec_json.dumps(spec)) == spec
