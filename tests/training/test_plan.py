"""The plan: every choice checked, with its reason, before anything is trained."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers.tiny import tiny_model, tiny_spec
from unet_batch.datasets.dataset import Dataset
from unet_batch.datasets.find import find_dataset
from unet_batch.datasets.join import join
from unet_batch.errors import BackendUnavailable, CheckpointError, UsageError
from unet_batch.model import checkpoint, pretrained
from unet_batch.model.unet import UNet
from unet_batch.training.loop import epoch_order
from unet_batch.training.options import Options
from unet_batch.training.plan import TrainingPlan, make_plan
from unet_batch.types import ClassTable


def plan_of(
    dataset: Dataset, processes: int = 1, output: str = "m.safetensors", **options: Any
) -> TrainingPlan:
    return make_plan(
        dataset, output, Options(**{"device": "cpu", "widths": (4, 8), **options}), processes=processes
    )


def listed(path: Path, *names: str) -> str:
    path.write_text("\n".join(names))
    return str(path)


def pictures(root: Path, *sizes: tuple[int, int]) -> Dataset:
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for index, size in enumerate(sizes):
        Image.fromarray(np.zeros((*size, 3), np.uint8)).save(root / f"images/p{index}.png")
        Image.fromarray(np.eye(*size, dtype=np.uint8) * 255).save(root / f"masks/p{index}.png")
    return find_dataset(str(root))


def start(path: Path, **changes: object) -> str:
    spec = tiny_spec(**changes)  # type: ignore[arg-type]
    checkpoint.save(str(path), tiny_model(spec), spec)
    return str(path)


@pytest.fixture
def dataset(shapes: Path) -> Dataset:
    return find_dataset(str(shapes))


@pytest.fixture
def three_classes(two_kinds: Path) -> Dataset:
    return find_dataset(str(two_kinds))


class TestOptions:
    @pytest.mark.parametrize(
        ("name", "values"),
        [
            ("size", [(0, 32), (32, -1), (32, 20_000)]),
            ("crop", [(0, 32), (32, -1)]),
            ("widths", [(), (8, 0), (8, 5000), (4,) * 9]),
            ("epochs", [0, -3]),
            ("batch_size", [0]),
            ("lr", [0.0, -1.0, 10.0, math.nan, math.inf]),
            ("seed", [-1]),
            ("val_fraction", [0.0, 1.0, math.nan]),
            ("augment", ["heavy", ""]),
            ("flip", ["vertical"]),
            ("dice", ["pixel"]),
            ("class_weights", ["sqrt"]),
            ("keep", ["all"]),
            ("patience", [-1]),
            ("weight_decay", [-0.1, math.nan, math.inf]),
            ("clip", [0.0, -1.0, math.nan]),
            ("precision", ["fp8", ""]),
            ("encoder", ["resnet18", ""]),
            ("encoder_lr", [0.0, 1.5, math.nan]),
            ("paste", [-0.1, 1.1, math.nan]),
            ("plain_epochs", [-1, 41]),
            ("weights", [(0.0, 1.0), (1.0, 101.0)]),
        ],
    )
    def test_out_of_range_are_named(self, name: str, values: list[object]) -> None:
        for value in values:
            with pytest.raises(UsageError, match=rf"^{name} .*: out of range") as error:
                Options(**{name: value})  # type: ignore[arg-type]
            assert "--help" in error.value.hint

    def test_a_checkpoint_of_the_largest_network_can_be_read_again(self, tmp_path: Path) -> None:
        spec = tiny_spec(widths=Options(widths=(1,) * 8).widths, size=(16384, 16384))
        path = str(tmp_path / "m.safetensors")
        checkpoint.save(path, UNet(3, 1, spec.widths), spec)
        assert checkpoint.load(path).spec == spec

    def test_a_device_that_is_none(self, dataset: Dataset) -> None:
        for name in ("tpu9", "abacus"):
            with pytest.raises(BackendUnavailable, match=name):
                plan_of(dataset, device=name)


class TestParts:
    def test_groups_are_dealt_whole(self, dataset: Dataset) -> None:
        plan = plan_of(dataset, val_fraction=0.25)
        assert {*plan.train, *plan.val} == set(dataset.pairs)
        assert (len(plan.train), len(plan.val)) == (20, 4)
        assert not {pair.group for pair in plan.train} & {pair.group for pair in plan.val}
        assert (
            "20 pictures of 10 groups train, 4 of 2 validate (by a hash of the group, about 25% for "
            "validation)" in plan.reasons
        )

    def test_another_seed_keeps_the_parts(self, dataset: Dataset) -> None:
        assert plan_of(dataset, seed=5).val == plan_of(dataset).val

    def test_lists_name_one_part_or_both(self, dataset: Dataset, tmp_path: Path) -> None:
        val, train = (
            listed(tmp_path / "val", "set00_0", "set00_1"),
            listed(tmp_path / "train", "set05_0.png", "set05_1"),
        )
        plan = plan_of(dataset, val_list=val)
        assert [pair.key for pair in plan.val] == ["set00_0", "set00_1"]
        assert len(plan.train) == 22
        plan = plan_of(dataset, train_list=train)
        assert [pair.key for pair in plan.train] == ["set05_0", "set05_1"]
        assert len(plan.val) == 22
        plan = plan_of(dataset, train_list=train, val_list=val)
        assert (len(plan.train), len(plan.val)) == (2, 2)
        assert any("by list" in reason for reason in plan.reasons)

    def test_a_group_in_both_is_an_error(self, dataset: Dataset, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="group 'set00' is in training and validation"):
            plan_of(dataset, val_list=listed(tmp_path / "val", "set00_0"))

    def test_an_empty_part_is_an_error(self, dataset: Dataset, tmp_path: Path) -> None:
        everything = listed(tmp_path / "all", *(pair.key for pair in dataset.pairs))
        with pytest.raises(UsageError, match="no picture is left for training: 24 in all"):
            plan_of(dataset, val_list=everything)
        with pytest.raises(UsageError, match="no picture is left for validation"):
            plan_of(dataset, train_list=everything)


class TestSize:
    @pytest.mark.parametrize(
        ("sizes", "expected"),
        [
            ([(640, 959)] * 2, (208, 320)),
            ([(500, 500)] * 2, (256, 256)),
            ([(90, 64)] * 2, (96, 64)),  # not enlarged to 256 x 256
            ([(8, 8)] * 2, (32, 32)),
            ([(300, 600)] * 4 + [(600, 300)], (176, 368)),
        ],
    )
    def test_has_the_pictures_shape(
        self, tmp_path: Path, sizes: list[tuple[int, int]], expected: tuple[int, int]
    ) -> None:
        plan = plan_of(pictures(tmp_path / "d", *sizes))
        assert plan.spec.input_size == expected
        assert any(
            reason.startswith(f"{expected[0]}x{expected[1]}: of the pictures' shape")
            for reason in plan.reasons
        )

    def test_is_the_one_asked_for_else_that_of_the_start(self, dataset: Dataset, tmp_path: Path) -> None:
        init = start(tmp_path / "s.safetensors", size=(24, 40))
        assert plan_of(dataset, size=(33, 47), init=init, widths=None).spec.input_size == (33, 47)
        assert plan_of(dataset, init=init, widths=None).spec.input_size == (24, 40)

    def test_one_value_a_channel_is_too_few_for_batchnorm(self, dataset: Dataset) -> None:
        with pytest.raises(UsageError, match="8x7 at a stride of 8") as error:
            plan_of(dataset, size=(8, 7), widths=(4, 4, 4, 4), batch_size=1)
        assert "--batch-size" in error.value.hint
        for fine in ({"size": (9, 7)}, {"widths": (4, 4, 4)}, {"batch_size": 2}):
            assert plan_of(dataset, **{"size": (8, 7), "widths": (4, 4, 4, 4), "batch_size": 1, **fine}).steps  # type: ignore[arg-type]


class TestStart:
    def test_from_nothing(self, dataset: Dataset) -> None:
        plan = plan_of(dataset, widths=None)
        assert (plan.init, plan.new_head, plan.lr) == ("", False, 1e-3)
        assert plan.spec.widths == (32, 64, 128, 256, 512)
        assert plan.spec.output == "probability"
        assert plan.spec.name == "m"

    def test_from_a_checkpoint(self, dataset: Dataset, tmp_path: Path) -> None:
        init = start(tmp_path / "s.safetensors")
        plan = plan_of(dataset, init=init, widths=None)
        assert (plan.init, plan.lr, plan.spec.widths) == (init, 1e-3, (4, 8, 16))
        # What the weights are used to
        assert (plan.spec.mean, plan.spec.std) == (tiny_spec().mean, tiny_spec().std)
        assert any(reason.startswith("starts from tiny, sha256 ") for reason in plan.reasons)
        assert plan_of(dataset, init=init, widths=None, lr=0.01).lr == 0.01

    def test_the_range_is_the_one_asked_for_else_that_of_the_start(
        self, dataset: Dataset, tmp_path: Path
    ) -> None:
        init = start(tmp_path / "s.safetensors", training={"range": "0,4095"})
        plan = plan_of(dataset, init=init, widths=None)
        assert plan.options.range_fact == {"range": "0,4095"}
        assert any(reason.startswith("range 0,4095: that of its training") for reason in plan.reasons)
        assert plan_of(dataset, init=init, widths=None, value_range="auto").options.range_fact == {}
        assert plan_of(dataset).options.range_fact == {}
        assert plan_of(dataset).fingerprint == plan_of(dataset, value_range="auto").fingerprint
        with pytest.raises(UsageError, match="A below B"):
            Options(value_range="4095")

    def test_from_the_bundled_model(self, dataset: Dataset) -> None:
        assert os.path.exists(plan_of(dataset, init="default", widths=None).init)

    def test_other_widths_are_an_error(self, dataset: Dataset, tmp_path: Path) -> None:
        init = start(tmp_path / "s.safetensors")
        with pytest.raises(UsageError, match=r"has widths 4,8,16, asked for are 4,8$") as error:
            plan_of(dataset, init=init)
        assert "--widths" in error.value.hint
        assert plan_of(dataset, init=init, widths=(4, 8, 16)).init

    def test_no_such_file(self, dataset: Dataset) -> None:
        with pytest.raises(CheckpointError, match="nowhere"):
            plan_of(dataset, init="nowhere.safetensors")

    @pytest.mark.parametrize(
        ("here", "there", "new"),
        [
            (["car"], ["car"], False),
            (["cell"], ["car"], True),
            (["foreground"], ["car"], False),  # nobody said what it is
            (["car"], ["foreground"], False),
            (["a", "b", "c"], ["a", "b", "c"], False),
            (["a", "b", "c"], ["a", "c", "b"], True),
            (["a", "b", "c"], ["a", "b", "c", "d", "e", "f"], True),
            (["car"], ["car", "road"], True),
            (["car", "road"], ["car"], True),
        ],
    )
    def test_a_head_of_other_classes_is_replaced(
        self, dataset: Dataset, tmp_path: Path, here: list[str], there: list[str], new: bool
    ) -> None:
        ours, theirs = (ClassTable(tuple(names), ((1, 2, 3),) * len(names)) for names in (here, there))
        output = "class_ids" if len(there) > 1 else "probability"
        init = start(tmp_path / "s.safetensors", classes=len(there))
        loaded = checkpoint.load(init)
        checkpoint.save(init, loaded.model, replace(loaded.spec, classes=theirs, output=output))  # type: ignore[arg-type]
        plan = plan_of(replace(dataset, classes=ours), init=init, widths=None)
        assert plan.new_head == new == any("new head" in reason for reason in plan.reasons)
        assert plan.spec.classes == ours
        assert plan.spec.output == ("class_ids" if len(here) > 1 else "probability")


class TestTerms:
    def test_are_those_of_the_data(self, dataset: Dataset) -> None:
        plan = plan_of(dataset, terms="CC0: a")
        assert plan.spec.terms == "CC0: a"
        assert "terms: CC0: a" in plan.reasons
        plan = plan_of(dataset)
        assert plan.spec.terms == ""
        assert not any(reason.startswith("terms") for reason in plan.reasons)

    def test_of_the_start_are_kept_and_said(self, dataset: Dataset, tmp_path: Path) -> None:
        init = start(tmp_path / "s.safetensors", terms="non-commercial: b")
        plan = plan_of(dataset, init=init, widths=None)
        assert plan.spec.terms == "non-commercial: b"
        assert "terms of tiny, kept: non-commercial: b" in plan.reasons
        plan = plan_of(dataset, init=init, widths=None, terms="CC0: a")
        assert plan.spec.terms == "CC0: a; started from tiny: non-commercial: b"
        assert f"terms: {plan.spec.terms}" in plan.reasons

    def test_change_no_weights(self, dataset: Dataset) -> None:
        assert plan_of(dataset, terms="CC0").fingerprint == plan_of(dataset).fingerprint


class TestBatches:
    def test_are_no_larger_than_the_part(self, dataset: Dataset) -> None:
        plan = plan_of(dataset, batch_size=100)
        assert (plan.batch_size, plan.steps) == (len(plan.train), 1)

    def test_leave_the_rest_for_another_epoch(self, dataset: Dataset) -> None:
        plan = plan_of(dataset, batch_size=6, val_fraction=0.25)
        assert plan.steps == 3

    @pytest.mark.parametrize(
        ("crop", "windows"), [((32, 48), 1), ((16, 24), 4), ((31, 48), 2), ((32, 17), 3), ((8, 8), 24)]
    )
    def test_hold_as_many_windows_as_cover_each_picture(
        self, dataset: Dataset, crop: tuple[int, int], windows: int
    ) -> None:
        plan = plan_of(dataset, size=(32, 48), crop=crop, batch_size=2)
        assert plan.training_size == crop
        assert (plan.samples, plan.steps) == (windows * len(plan.train), windows * len(plan.train) // 2)
        assert plan_of(dataset, size=(32, 48), crop=crop, batch_size=10_000).batch_size == plan.samples

    def test_fewer_samples_than_processes_are_refused(self, dataset: Dataset) -> None:
        with pytest.raises(UsageError, match="are too few for 100 processes"):
            plan_of(dataset, 100, size=(32, 48), batch_size=100)
        assert plan_of(dataset, 100, size=(32, 48), crop=(8, 8), batch_size=100).batch_size == 100

    def test_windows_larger_than_the_input_are_refused(self, dataset: Dataset) -> None:
        with pytest.raises(UsageError, match="windows of 33x48 do not fit into the network's 32x48") as error:
            plan_of(dataset, size=(32, 48), crop=(33, 48))
        assert "--crop" in error.value.hint

    def test_of_one_small_window_are_too_few_for_batchnorm(self, dataset: Dataset) -> None:
        with pytest.raises(UsageError, match="8x8 at a stride of 8"):
            plan_of(dataset, size=(32, 48), crop=(8, 8), widths=(4, 4, 4, 4), batch_size=1)

    def test_are_shared_by_the_processes(self, dataset: Dataset) -> None:
        assert plan_of(dataset, 4, batch_size=8).batch_size == 8
        with pytest.raises(UsageError, match="a batch of 8 cannot be shared by 3 processes") as error:
            plan_of(dataset, 3, batch_size=8)
        assert error.value.hint == "--batch-size 6"
        with pytest.raises(UsageError, match="a batch of 2 cannot be shared by 4 processes") as error:
            plan_of(dataset, 4, batch_size=2)
        assert error.value.hint == "--batch-size 4"


class TestPrecision:
    def test_is_the_devices_or_the_one_asked_for(self, dataset: Dataset) -> None:
        plan = plan_of(dataset)
        assert plan.precision in ("fp32", "bf16")
        assert any(plan.precision in reason or "float32" in reason for reason in plan.reasons)
        assert plan_of(dataset, precision="bf16").precision == "bf16"

    def test_half_is_refused_on_a_cpu(self, dataset: Dataset) -> None:
        with pytest.raises(UsageError, match="fp16 on a CPU"):
            plan_of(dataset, precision="fp16")


class TestPaths:
    def test_lie_beside_the_model(self, dataset: Dataset, tmp_path: Path) -> None:
        plan = plan_of(dataset, output=str(tmp_path / "a.b" / "cars.v2.safetensors"))
        assert plan.folder == str(tmp_path / "a.b" / "cars.v2.training")
        assert plan.card == str(tmp_path / "a.b" / "cars.v2.md")
        assert plan.spec.name == "cars.v2"

    def test_a_model_is_a_safetensors_file(self, dataset: Dataset) -> None:
        with pytest.raises(UsageError, match=r"a model is a \.safetensors file") as error:
            plan_of(dataset, output="cars.pt")
        assert error.value.hint == "-o cars.pt.safetensors"


class TestFingerprint:
    def test_is_json_and_the_same_each_time(self, dataset: Dataset) -> None:
        prints = [plan_of(dataset, size=(16, 24)).fingerprint for _ in range(2)]
        assert prints[0] == prints[1] == json.loads(json.dumps(prints[0]))

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("size", (40, 48)),
            ("crop", (16, 48)),
            ("widths", (4, 16)),
            ("epochs", 41),
            ("batch_size", 4),
            ("lr", 0.02),
            ("seed", 1),
            ("val_fraction", 0.4),
            ("augment", "strong"),
            ("flip", "any"),
            ("dice", "picture"),
            ("class_weights", "none"),
            ("weight_decay", 0.1),
            ("clip", 2.0),
            ("precision", "bf16"),
            ("deterministic", True),
            ("value_range", "percentile"),
        ],
    )
    def test_changes_with_each_option_that_matters(self, dataset: Dataset, key: str, value: object) -> None:
        base = {"size": (32, 48), "precision": "fp32"}
        one, other = (
            plan_of(dataset, **base).fingerprint,
            plan_of(dataset, **{**base, key: value}).fingerprint,
        )
        changed = {name for name in one if one[name] != other[name]}
        assert key in changed <= {key, "pictures"}

    def test_says_nothing_of_device_lists_and_output(self, dataset: Dataset, tmp_path: Path) -> None:
        plan = plan_of(dataset, size=(16, 24))
        lists = {
            name: listed(tmp_path / name, *(pair.key for pair in part))
            for name, part in (("train_list", plan.train), ("val_list", plan.val))
        }
        same = plan_of(dataset, output=str(tmp_path / "n.safetensors"), size=(16, 24), **lists)  # type: ignore[arg-type]
        assert same.fingerprint == plan.fingerprint
        elsewhere = replace(
            plan, device=torch.device("cuda:1"), options=replace(plan.options, device="cuda:1")
        )
        assert elsewhere.fingerprint == plan.fingerprint

    def test_what_was_chosen_for_a_person_counts_like_what_a_person_chose(self, dataset: Dataset) -> None:
        plan = plan_of(dataset)
        spelled = plan_of(dataset, size=plan.spec.input_size, lr=plan.lr, precision=plan.precision)
        assert spelled.fingerprint == plan.fingerprint

    def test_sees_pictures_come_go_change_and_swap_sides(self, tmp_path: Path) -> None:
        dataset = pictures(tmp_path / "d", *[(20, 24)] * 6)

        def print_of(pairs: Dataset) -> str:
            return str(
                plan_of(pairs, size=(16, 24), val_list=listed(tmp_path / "v", "p0")).fingerprint["pictures"]
            )

        first = print_of(dataset)
        assert print_of(find_dataset(str(tmp_path / "d"))) == first
        assert print_of(replace(dataset, pairs=dataset.pairs[:-1])) != first
        sides = [
            plan_of(dataset, size=(16, 24), val_list=listed(tmp_path / "v", *names))
            for names in (["p5"], ["p4", "p5"], ["p1"])
        ]
        assert len({first, *(plan.fingerprint["pictures"] for plan in sides)}) == 4
        for path in (dataset.pairs[3].image, dataset.pairs[3].mask):
            before = Path(path).read_bytes()
            Path(path).write_bytes(before + b"\0")
            assert print_of(dataset) != first
            Path(path).write_bytes(before)
        assert print_of(dataset) == first

    def test_tells_masks_of_ids_from_probabilities(self, tmp_path: Path) -> None:
        dataset = pictures(tmp_path / "d", *[(20, 24)] * 4)
        hard = plan_of(dataset, size=(16, 24)).fingerprint
        for toml in ("", 'values = "probability"\n'):
            (tmp_path / "d/classes.toml").write_text(toml + '[[class]]\nname = "foreground"\n')
            found = plan_of(find_dataset(str(tmp_path / "d")), size=(16, 24)).fingerprint
            assert {key for key in found if found[key] != hard[key]} == ({"mask_values"} if toml else set())

    def test_does_not_hang_on_where_the_dataset_lies(self, tmp_path: Path) -> None:
        prints = [
            plan_of(pictures(tmp_path / name / "d", *[(20, 24)] * 4), size=(16, 24)).fingerprint
            for name in ("here", "there")
        ]
        assert prints[0] == prints[1]


class TestMemory:
    @staticmethod
    def kept(plan: TrainingPlan, samples: int) -> int:
        """Bytes of activations that a forward pass on real numbers holds on to."""
        found: dict[int, int] = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            if not isinstance(tensor, torch.nn.Parameter):
                found[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        model = UNet(3, len(plan.spec.classes.names), plan.spec.widths)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            logits = model(torch.rand(samples, 3, *plan.spec.input_size))
        del logits
        return sum(found.values())

    @pytest.mark.parametrize("size", [(64, 96), (50, 33)])
    def test_activations_are_those_of_a_real_pass(self, dataset: Dataset, size: tuple[int, int]) -> None:
        plan = plan_of(dataset, size=size, widths=(4, 8, 16), precision="fp32")
        each = (self.kept(plan, 3) - self.kept(plan, 1)) / 2
        assert plan.activation_bytes == pytest.approx(each, rel=0.05)

    def test_activations_grow_with_the_pixels_and_halve_with_the_bits(self, dataset: Dataset) -> None:
        small, large, bits = (
            plan_of(dataset, size=size, precision=precision).activation_bytes
            for size, precision in (((64, 64), "fp32"), ((128, 256), "fp32"), ((64, 64), "bf16"))
        )
        assert large == pytest.approx(8 * small, rel=0.02)
        assert plan_of(dataset, size=(128, 256), crop=(64, 64), precision="fp32").activation_bytes == small
        assert bits == pytest.approx(small / 2, rel=0.02)

    def test_weights_are_counted_five_times(self, three_classes: Dataset) -> None:
        plan = plan_of(three_classes)
        assert plan.weights_bytes == 5 * 4 * sum(p.numel() for p in UNet(3, 3, (4, 8)).parameters())


class TestEncoder:
    def test_its_weights_its_normalisation_and_its_multiples(self, dataset: Dataset) -> None:
        plan = plan_of(dataset, widths=None, encoder="efficientnet-lite0")
        spec = plan.spec
        assert (spec.architecture, spec.encoder, spec.widths) == (
            "encoder-unet",
            "efficientnet-lite0",
            (32, 48, 64, 96),
        )
        assert (spec.mean, spec.std) == (pretrained.MEAN, pretrained.STD)
        assert all(side % 32 == 0 for side in spec.input_size)
        assert plan.encoder_sha256.startswith("57934424")
        assert "efficientnet-lite0 starts from efficientnet-lite0-57934424.pth" in plan.reasons

    def test_random_weights_where_asked_for(self, dataset: Dataset) -> None:
        plan = plan_of(dataset, widths=None, encoder="efficientnet-lite0", encoder_weights="none")
        assert (plan.encoder_weights, plan.encoder_sha256) == ("", "")
        assert "efficientnet-lite0 starts from random weights: asked for" in plan.reasons

    def test_four_widths_are_the_decoders(self, dataset: Dataset) -> None:
        with pytest.raises(UsageError, match="2 widths, the decoder behind efficientnet-lite0 has 4 levels"):
            plan_of(dataset, encoder="efficientnet-lite0")

    def test_weights_without_an_encoder_are_refused(self, dataset: Dataset, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="--encoder-weights start a new encoder"):
            plan_of(dataset, encoder_weights="w.pth")
        path = start(tmp_path / "m.safetensors")
        with pytest.raises(UsageError, match="--encoder-weights start a new encoder"):
            plan_of(dataset, widths=None, init=path, encoder_weights="none")

    def test_a_rate_for_an_encoder_that_is_not_there_is_refused(self, dataset: Dataset) -> None:
        with pytest.raises(UsageError, match=r"--encoder-lr 0\.5: this network has no encoder"):
            plan_of(dataset, encoder_lr=0.5)
        encoder = {"encoder": "efficientnet-lite0", "encoder_weights": "none", "widths": (4, 4, 4, 4)}
        assert plan_of(dataset, encoder_lr=0.5, **encoder).options.encoder_lr == 0.5

    def test_init_of_another_network_is_refused(self, dataset: Dataset, tmp_path: Path) -> None:
        path = start(tmp_path / "m.safetensors")
        with pytest.raises(UsageError, match=r"asked for is the encoder efficientnet-lite0"):
            plan_of(dataset, widths=None, init=path, encoder="efficientnet-lite0")

    def test_weights_of_another_network_are_refused_before_anything_is_checked(
        self, dataset: Dataset, tmp_path: Path
    ) -> None:
        path = str(tmp_path / "w.pth")
        torch.save({"conv.weight": torch.zeros(1)}, path)
        with pytest.raises(CheckpointError, match="not the weights of efficientnet-lite0"):
            plan_of(dataset, widths=None, encoder="efficientnet-lite0", encoder_weights=path)

    def test_a_classic_network_is_resumed_as_before(self, dataset: Dataset) -> None:
        fingerprint = plan_of(dataset).fingerprint
        new = ("encoder", "encoder_weights", "encoder_lr", "paste", "plain_epochs", "weights")
        assert [fingerprint[key] for key in new] == [None] * len(new)


class TestSeveralDatasets:
    @pytest.fixture
    def joined(self, tmp_path: Path) -> Dataset:
        sizes = [(32, 32)] * 10
        parts = [pictures(tmp_path / name, *sizes) for name in ("a", "b", "c")]
        return join(parts)

    def lists(self, joined: Dataset, tmp_path: Path) -> dict[str, str]:
        val = [pair.key for pair in joined.pairs if pair.key.endswith("p0")]
        return {"val_list": listed(tmp_path / "val.txt", *val)}

    def test_weights_say_how_often_an_epoch_sees_each(self, joined: Dataset, tmp_path: Path) -> None:
        joined = replace(joined, pairs=tuple(replace(pair, group=pair.key) for pair in joined.pairs))
        plan = plan_of(joined, weights=(1.0, 2.5, 0.3), **self.lists(joined, tmp_path))
        assert plan.shares == ((range(9), 1, 0), (range(9, 18), 2, 4), (range(18, 27), 0, 3))
        assert plan.samples == 9 + 22 + 3
        seen = [0] * 27
        for epoch in range(20):
            order = epoch_order(plan, epoch)
            assert len(order) == len(set(order)) == plan.samples  # each augmented by itself
            for number in order:
                seen[number % 27] += 1
        assert set(seen[:9]) == {20}
        assert set(seen[9:18]) <= set(range(41, 61))
        assert min(seen[18:]) > 0  # others each epoch
        assert [sum(seen[9:18]), sum(seen[18:])] == [20 * 22, 20 * 3]

    def test_a_batch_is_not_larger_than_what_weights_leave_of_an_epoch(self, joined: Dataset) -> None:
        plan = plan_of(joined, weights=(0.1, 0.1, 0.2), batch_size=16)
        assert plan.samples < 16
        assert (plan.batch_size, plan.steps) == (plan.samples, 1)

    def test_a_weight_that_leaves_nothing_of_a_dataset_is_refused(
        self, joined: Dataset, tmp_path: Path
    ) -> None:
        joined = replace(joined, pairs=tuple(replace(pair, group=pair.key) for pair in joined.pairs))
        with pytest.raises(UsageError, match=r"weight 0\.05 leaves nothing of the 9 training pictures of b"):
            plan_of(joined, weights=(1.0, 0.05, 1.0), **self.lists(joined, tmp_path))

    def test_a_single_dataset_has_its_weight(self, dataset: Dataset) -> None:
        plan = plan_of(dataset, weights=(2.5,), batch_size=1)
        pictures = len(plan.train)
        assert plan.samples == len(epoch_order(plan, 0)) == 2 * pictures + round(pictures / 2)

    def test_the_plan_says_what_each_gives(self, joined: Dataset, tmp_path: Path) -> None:
        joined = replace(joined, pairs=tuple(replace(pair, group=pair.key) for pair in joined.pairs))
        plan = plan_of(joined, weights=(1.0, 2.5, 0.3), **self.lists(joined, tmp_path))
        assert "b: 9 pictures train, at weight 2.5, 1 validate" in plan.reasons

    def test_as_many_weights_as_datasets(self, joined: Dataset, dataset: Dataset) -> None:
        with pytest.raises(UsageError, match="2 weights for 3 datasets"):
            plan_of(joined, weights=(1.0, 2.0))
        with pytest.raises(UsageError, match="2 weights for 1 datasets"):
            plan_of(dataset, weights=(1.0, 2.0))


def test_pasting_needs_one_class(three_classes: Dataset) -> None:
    with pytest.raises(UsageError, match="pasting with 3 classes"):
        plan_of(three_classes, paste=0.5)
