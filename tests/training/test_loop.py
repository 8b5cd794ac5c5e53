"""The training loop: it learns, it repeats itself to the bit, and it can be stopped anywhere."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import ROOT
from tests.helpers.datasets import write_shapes
from tests.helpers.processes import Forked, is_newer, killed, one_thread, run_together
from tests.helpers.systems import needs_posix
from tests.helpers.waiting import PATIENCE
from unet_batch.datasets.find import find_dataset
from unet_batch.datasets.join import join
from unet_batch.errors import ImageError, OutputError, TrainingError, UnetBatchError
from unet_batch.model import checkpoint, pretrained
from unet_batch.model.architectures import build_network
from unet_batch.training import augment, loop, losses, state, step
from unet_batch.training.options import Options
from unet_batch.training.plan import TrainingPlan, make_plan
from unet_batch.training.ranks import Ranks
from unet_batch.training.samples import Samples

TINY: dict[str, Any] = {"size": (40, 56), "widths": (4, 8), "batch_size": 4, "precision": "fp32"}

COMMAND = ["--size", "40x56", "--precision", "fp32"]


def plan_of(folder: Path, output: Path, **options: Any) -> TrainingPlan:
    return make_plan(find_dataset(str(folder)), str(output), Options(**{**TINY, "epochs": 3, **options}))


def weights(plan: TrainingPlan) -> dict[str, torch.Tensor]:
    """Everything that a training ends with, unrounded."""
    return load_file(os.path.join(plan.folder, "state.safetensors"))


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class After:
    """A `stop` that says yes when asked for the n-th time."""

    def __init__(self, count: int) -> None:
        self.left = count

    def __call__(self) -> bool:
        self.left -= 1
        return self.left <= 0


RECORD = loop.epoch_record


def better(*values: Any) -> dict[str, Any]:
    """A record of an epoch better than those before: each writes the model."""
    made = RECORD(*values)
    return {**made, "val_dice": made["epoch"] / 10}


@pytest.fixture(scope="module")
def wholes(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, TrainingPlan]:
    """A training to its end for each `keep`, every epoch better than the one before."""
    folder = tmp_path_factory.mktemp("wholes")
    plans = {keep: plan_of(shapes, folder / f"{keep}.safetensors", keep=keep) for keep in ("best", "last")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "epoch_record", better)
        for plan in plans.values():
            loop.train(plan)
    return plans


class TestTrain:
    def test_learns_what_a_disc_is(self, shapes: Path, tmp_path: Path) -> None:
        plan = plan_of(shapes, tmp_path / "m.safetensors", epochs=12, lr=1e-2)
        outcome = loop.train(plan)
        assert outcome.history[-1]["val_dice"] > 0.9
        assert outcome.history[-1]["loss"] < 0.5 * outcome.history[0]["loss"]
        assert outcome.ended == "all epochs"
        loaded = checkpoint.load(plan.output)
        assert loaded.spec.input_size == (40, 56)
        assert loaded.spec.training["epoch"] == outcome.best

    def test_learns_from_windows_and_is_judged_on_whole_pictures(
        self, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[tuple[int, ...]] = []
        forward = step.MixedPrecision.forward

        def noted(self: step.MixedPrecision, pictures: torch.Tensor) -> torch.Tensor:
            seen.append(tuple(pictures.shape))
            return forward(self, pictures)

        monkeypatch.setattr(step.MixedPrecision, "forward", noted)
        plan = plan_of(shapes, tmp_path / "m.safetensors", crop=(24, 32), epochs=6, lr=1e-2)
        assert plan.samples == 4 * len(plan.train)
        outcome = loop.train(plan)
        assert set(seen[: plan.steps]) == {(4, 3, 24, 32)}
        assert {shape[2:] for shape in seen[plan.steps :]} == {(24, 32), (40, 56)}
        assert outcome.history[-1]["val_dice"] > 0.9
        assert checkpoint.load(plan.output).spec.input_size == (40, 56)

    @pytest.mark.parametrize("dice", ["batch", "picture"])
    def test_every_loss_takes_the_dice_that_was_asked_for(
        self, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dice: str
    ) -> None:
        real, taken = losses.segmentation_loss, []

        def noted(*arguments: Any) -> torch.Tensor:
            taken.append(arguments[3])
            return real(*arguments)

        monkeypatch.setattr(losses, "segmentation_loss", noted)
        plan = plan_of(shapes, tmp_path / "m.safetensors", dice=dice, epochs=1)
        loop.train(plan)
        assert taken[plan.steps :], "validation has a loss too"
        assert set(taken) == {dice}

    def test_learns_several_classes(self, two_kinds: Path, tmp_path: Path) -> None:
        plan = plan_of(two_kinds, tmp_path / "m.safetensors", epochs=14, lr=1e-2)
        outcome = loop.train(plan, class_frequencies=(0.8, 0.15, 0.05))
        assert outcome.history[-1]["val_iou"] > 0.75
        assert checkpoint.load(plan.output).spec.output == "class_ids"

    def test_same_seed_same_weights_other_seed_others(self, shapes: Path, tmp_path: Path) -> None:
        plans = [
            plan_of(shapes, tmp_path / f"{n}.safetensors", seed=seed) for n, seed in enumerate((5, 5, 6))
        ]
        for plan in plans:
            loop.train(plan)
        first, second, third = map(weights, plans)
        assert same(first, second)
        assert not same(first, third)

    def test_an_encoder_starts_from_its_published_weights_and_learns_more_slowly(
        self, shapes: Path, tmp_path: Path
    ) -> None:
        options = {"widths": (8, 8, 8, 8), "encoder": "efficientnet-lite0", "size": (32, 64), "epochs": 1}
        plan = plan_of(shapes, tmp_path / "m.safetensors", paste=0.5, plain_epochs=0, **options)
        loop.train(plan)
        published = pretrained.read_encoder(plan.encoder_weights, "efficientnet-lite0").tensors
        random = build_network(plan.spec).state_dict()
        name = "stages.5.1.layers.0.weight"
        learned = weights(plan)[f"model.encoder.{name}"]
        assert 0 < float((learned - published[name]).abs().mean()) < 0.1 * float(published[name].abs().mean())
        assert float((random[f"encoder.{name}"] - published[name]).abs().mean()) > 0.01
        groups = step.build_state(plan, Ranks()).optimizer.param_groups
        assert sorted({group["lr_scale"] for group in groups}) == [0.3, 1.0]

    def test_the_last_epochs_are_plain(self, shapes: Path, tmp_path: Path) -> None:
        plan = plan_of(shapes, tmp_path / "m.safetensors", epochs=3, plain_epochs=1, paste=1.0, flip="none")
        samples = Samples(plan.dataset, plan.train, plan.spec.input_size, 2, 1 << 26)
        drawn = [next(loop.training_batches(plan, Ranks(), samples, epoch, 0)) for epoch in (0, 1, 2)]
        still = augment.draw(augment.PRESETS["none"], "none", samples.stored, samples.size, (0,))
        stored = [samples[number % len(samples)] for number in drawn[2].numbers]
        parts = [
            torch.from_numpy(np.stack([getattr(sample, part) for sample in stored]))
            for part in ("picture", "target", "known")
        ]
        expected = augment.apply(*parts, [still] * len(stored), samples.size)
        assert torch.equal(drawn[2].pictures, expected[0])
        assert torch.equal(drawn[2].targets, expected[1])
        for batch in drawn[:2]:
            assert not torch.equal(batch.pictures, expected[0])

    def test_the_last_epochs_normalise_as_at_run_time(self, shapes: Path, tmp_path: Path) -> None:
        plan = plan_of(shapes, tmp_path / "m.safetensors", epochs=3, plain_epochs=1)
        after: list[dict[str, torch.Tensor]] = []
        loop.train(plan, on_epoch=lambda _: after.append(weights(plan)))
        means = [key for key in after[0] if key.startswith("model.") and key.endswith("running_mean")]
        assert means
        assert not any(torch.equal(after[0][key], after[1][key]) for key in means)
        assert all(torch.equal(after[1][key], after[2][key]) for key in means)
        assert not same(after[1], after[2])

    def test_fine_tuning_starts_from_the_given_weights(self, shapes: Path, tmp_path: Path) -> None:
        first = plan_of(shapes, tmp_path / "a.safetensors", epochs=8, lr=1e-2)
        loop.train(first)
        second = plan_of(
            shapes, tmp_path / "b.safetensors", epochs=1, lr=1e-4, init=first.output, widths=None, size=None
        )
        assert loop.train(second).history[0]["val_dice"] > 0.85

    def test_a_new_head_is_trained_where_the_classes_differ(
        self, shapes: Path, two_kinds: Path, tmp_path: Path
    ) -> None:
        first = plan_of(shapes, tmp_path / "a.safetensors", epochs=1)
        loop.train(first)
        second = plan_of(two_kinds, tmp_path / "b.safetensors", epochs=1, init=first.output, widths=None)
        assert second.new_head
        loop.train(second)
        assert checkpoint.load(second.output).model.out_channels == 3

    def test_the_model_holds_the_best_epoch_or_the_last(self, shapes: Path, tmp_path: Path) -> None:
        for keep in ("best", "last"):
            plan = plan_of(shapes, tmp_path / f"{keep}.safetensors", epochs=6, keep=keep, lr=3e-2)
            outcome = loop.train(plan)
            scores = [record["val_dice"] for record in outcome.history]
            assert outcome.best == (6 if keep == "last" else scores.index(max(scores)) + 1)
            assert checkpoint.load(plan.output).spec.training["epoch"] == outcome.best

    def test_stops_without_improvement(
        self, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        records = iter([0.5, 0.6, 0.6, 0.55, 0.7])
        real = loop.epoch_record
        monkeypatch.setattr(
            loop, "epoch_record", lambda *values: {**real(*values), "val_dice": next(records)}
        )
        outcome = loop.train(plan_of(shapes, tmp_path / "m.safetensors", epochs=9, patience=2))
        assert outcome.ended == "no improvement"
        assert (len(outcome.history), outcome.best) == (4, 2)

    def test_metrics_are_written_line_by_line(self, shapes: Path, tmp_path: Path) -> None:
        plan = plan_of(shapes, tmp_path / "m.safetensors")
        outcome = loop.train(plan)
        lines = Path(plan.folder, "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == list(outcome.history)
        assert [record["epoch"] for record in outcome.history] == [1, 2, 3]
        assert outcome.history[-1]["lr"] < 0.2 * plan.lr

    def test_a_loss_that_is_not_finite_ends_it_with_a_hint(
        self, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(losses, "segmentation_loss", lambda logits, *rest: logits.sum() * float("nan"))
        with pytest.raises(
            TrainingError,
            match=r"nan in epoch 1, step \d+: the training diverged|nan after epoch 1: the training diverged",
        ) as caught:
            loop.train(plan_of(shapes, tmp_path / "m.safetensors"))
        assert "--lr" in caught.value.hint
        assert not (tmp_path / "m.safetensors").exists()

    def test_too_little_memory_names_the_batch_and_what_helps(
        self, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(text: str) -> None:
            def fail_step(*rest: object) -> None:
                raise RuntimeError(text)

            monkeypatch.setattr(loop, "train_step", fail_step)
            loop.train(plan_of(shapes, tmp_path / "m.safetensors"))

        with pytest.raises(TrainingError, match="does not hold a batch of 4 at 40x56") as caught:
            fail("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")
        assert "--batch-size 2" in caught.value.hint
        with pytest.raises(RuntimeError, match="illegal memory access"):
            fail("CUDA error: an illegal memory access was encountered")

    def test_a_file_that_vanished_is_named(
        self, shapes: Path, tmp_path: Path, no_thread_is_left: None
    ) -> None:
        plan = plan_of(shapes, tmp_path / "m.safetensors")
        gone = plan.train[3]
        object.__setattr__(gone, "image", str(tmp_path / "gone.png"))
        with pytest.raises(ImageError, match=r"gone\.png"):
            loop.train(plan)
        object.__setattr__(gone, "image", str(shapes / "images" / f"{gone.key}.png"))

    def test_a_full_disk_leaves_the_state_before(
        self, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plan = plan_of(shapes, tmp_path / "m.safetensors")
        loop.train(plan, stop=After(6))
        before = weights(plan)

        def full(*rest: object, **more: object) -> None:
            raise OutputError("disk full")

        with monkeypatch.context() as patch:
            patch.setattr(state, "write_atomic", full)
            with pytest.raises(OutputError):
                loop.train(plan, resume=True)
        assert same(weights(plan), before)
        loop.train(plan, resume=True)
        whole = plan_of(shapes, tmp_path / "whole.safetensors")
        loop.train(whole)
        assert same(weights(plan), weights(whole))


class TestResume:
    @pytest.mark.parametrize(("augment", "crop"), [("none", None), ("strong", None), ("elastic", (24, 32))])
    def test_stopped_after_any_step_ends_the_same(
        self, shapes: Path, tmp_path: Path, augment: str, crop: tuple[int, int] | None
    ) -> None:
        whole = plan_of(shapes, tmp_path / "whole.safetensors", augment=augment, crop=crop)
        loop.train(whole)
        wanted, steps = weights(whole), 3 * whole.steps
        for count in (1, whole.steps - 1, whole.steps, whole.steps + 1, steps - 1):
            plan = plan_of(shapes, tmp_path / f"{count}.safetensors", augment=augment, crop=crop)
            assert loop.train(plan, stop=After(count)).ended == "interrupted"
            outcome = loop.train(plan, resume=True)
            assert outcome.ended == "all epochs"
            assert same(weights(plan), wanted), f"stopped after {count} of {steps} steps"
            assert checkpoint.load(plan.output).spec.training["epoch"] == outcome.best

    def test_on_an_encoder_several_datasets_and_pasted_objects_it_ends_the_same(
        self, shapes: Path, tmp_path: Path
    ) -> None:
        other = write_shapes(tmp_path / "other", 12)
        datasets = [find_dataset(str(folder)) for folder in (shapes, other)]
        chosen = Options(
            size=(32, 64),
            widths=(4, 4, 4, 4),
            encoder="efficientnet-lite0",
            batch_size=4,
            precision="fp32",
            epochs=2,
            paste=0.5,
            plain_epochs=1,
            weights=(0.4, 0.5),
        )
        whole = make_plan(join(datasets), str(tmp_path / "whole.safetensors"), chosen)
        loop.train(whole)
        plan = make_plan(join(datasets), str(tmp_path / "stopped.safetensors"), chosen)
        assert loop.train(plan, stop=After(whole.steps - 1)).ended == "interrupted"
        loop.train(plan, resume=True)
        assert same(weights(plan), weights(whole))

    def test_of_several_classes_keeps_their_weights(self, two_kinds: Path, tmp_path: Path) -> None:
        whole, plan = (plan_of(two_kinds, tmp_path / f"{name}.safetensors") for name in ("whole", "part"))
        loop.train(whole, class_frequencies=(0.8, 0.15, 0.05))
        loop.train(plan, class_frequencies=(0.8, 0.15, 0.05), stop=After(4))
        loop.train(plan, resume=True)
        assert same(weights(plan), weights(whole))

    @pytest.mark.parametrize("keep", ["best", "last"])
    @pytest.mark.parametrize("place", ["metrics", "state", "model", "afterwards"])
    @pytest.mark.parametrize("epoch", [1, 2])
    def test_killed_at_any_write_at_the_end_of_an_epoch_ends_the_same(
        self,
        shapes: Path,
        wholes: dict[str, TrainingPlan],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        epoch: int,
        place: str,
        keep: str,
    ) -> None:
        """`place` is the write that does not happen any more."""

        class Killed(BaseException):
            pass

        def kill(*rest: object, **more: object) -> None:
            left[0] -= 1
            if not left[0]:
                raise Killed
            real(*rest, **more)

        monkeypatch.setattr(loop, "epoch_record", better)
        whole, plan = wholes[keep], plan_of(shapes, tmp_path / "m.safetensors", keep=keep)
        left = [epoch + (place == "metrics")]  # the first file that is written is val.txt
        name = {"metrics": "write_atomic", "state": "save_state", "model": "_write_model"}.get(place, "")
        real = getattr(loop, name, lambda *rest: None)
        with monkeypatch.context() as patch:
            if name:
                patch.setattr(loop, name, kill)
            with pytest.raises(Killed):
                loop.train(plan, on_epoch=kill if not name else None)
        outcome = loop.train(plan, resume=True)
        assert outcome.ended == "all epochs"
        assert same(weights(plan), weights(whole))
        assert same(load_file(plan.output), load_file(whole.output))
        assert checkpoint.identify(plan.output).spec.training["epoch"] == outcome.best

    @pytest.mark.parametrize("place", ["train_step", "validate", "_write_model"])
    def test_killed_before_its_first_model_it_replaces_what_was_there(
        self, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
    ) -> None:
        """Which --overwrite had been given for."""
        plan, other = (plan_of(shapes, tmp_path / "m.safetensors", seed=seed) for seed in (1, 2))
        loop.train(other)
        with monkeypatch.context() as patch:
            patch.setattr(loop, place, lambda *rest: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                loop.train(plan)
        assert loop.has_state(plan)  # else --resume takes the model for somebody else's
        loop.train(plan, resume=True)
        whole = plan_of(shapes, tmp_path / "whole.safetensors", seed=1)
        loop.train(whole)
        assert same(load_file(plan.output), load_file(whole.output))

    def test_begins_where_there_is_nothing_to_go_on_with(self, shapes: Path, tmp_path: Path) -> None:
        plan, whole = (plan_of(shapes, tmp_path / f"{name}.safetensors") for name in ("m", "whole"))
        loop.train(plan, resume=True)
        loop.train(whole)
        assert same(weights(plan), weights(whole))

    def test_a_finished_training_is_left_as_it_is(self, shapes: Path, tmp_path: Path) -> None:
        plan = plan_of(shapes, tmp_path / "m.safetensors")
        first = loop.train(plan)
        before = weights(plan)
        assert loop.train(plan, resume=True).history == first.history
        assert same(weights(plan), before)

    @pytest.mark.parametrize(
        ("damage", "complaint"), [("gone", "is gone"), ("empty", "0 bytes"), ("other", "holds epoch 7")]
    )
    def test_another_model_beside_the_state_is_noticed(
        self, shapes: Path, tmp_path: Path, damage: str, complaint: str
    ) -> None:
        plan = plan_of(shapes, tmp_path / "m.safetensors")
        loop.train(plan, stop=After(plan.steps + 2))
        if damage == "gone":
            os.unlink(plan.output)
        elif damage == "empty":
            Path(plan.output).write_bytes(b"")
        else:
            loaded = checkpoint.load(plan.output)
            checkpoint.save(plan.output, loaded.model, replace(loaded.spec, training={"epoch": 7}))
        with pytest.raises(UnetBatchError, match=complaint):
            loop.train(plan, resume=True)

    def test_stopped_during_validation_it_ends_after_it(
        self, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = []
        real = loop.validate
        monkeypatch.setattr(loop, "validate", lambda *values: (asked.append(1), real(*values))[1])
        plan = plan_of(shapes, tmp_path / "m.safetensors")
        outcome = loop.train(plan, stop=lambda: len(asked) == 2)
        assert (outcome.ended, len(outcome.history)) == ("interrupted", 2)

    def test_begun_again_leaves_nothing_of_the_training_before(self, shapes: Path, tmp_path: Path) -> None:
        plan = plan_of(shapes, tmp_path / "m.safetensors")
        loop.train(plan)
        loop.train(plan, stop=After(1))
        assert {path.name for path in Path(plan.folder).iterdir()} == {"state.safetensors", "val.txt"}
        assert loop.train(plan, resume=True).ended == "all epochs"

    def test_other_options_are_refused_by_name(self, shapes: Path, tmp_path: Path) -> None:
        loop.train(plan_of(shapes, tmp_path / "m.safetensors"), stop=After(2))
        with pytest.raises(TrainingError, match=r"epochs \(then 3, now 4\)"):
            loop.train(plan_of(shapes, tmp_path / "m.safetensors", epochs=4), resume=True)

    @needs_posix
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("network", "epochs", "wanted"),
        [("--widths 4,8", 20, 10), ("--encoder efficientnet-lite0 --widths 4,4,4,4 --size 32x64", 5, 3)],
        ids=["unet", "encoder-unet"],
    )
    def test_killed_at_random_moments_ends_with_the_same_weights(
        self, shapes: Path, tmp_path: Path, network: str, epochs: int, wanted: int
    ) -> None:
        """Each process is killed while it trains, writes the state or writes the model; the next one goes
        on.
        """
        options = [*COMMAND, *network.split(), "--batch-size", "4", "--epochs", str(epochs)]
        options += ["--augment", "strong"]

        def train(output: Path, *more: Any) -> int | None:
            arguments = ["train", str(shapes), "-o", str(output), *options, "--resume"]
            process = Forked(*more, one_thread, *arguments, errors=tmp_path / "errors.txt")
            try:
                return process.wait(PATIENCE)
            finally:
                process.kill()

        assert train(tmp_path / "whole.safetensors") == 0, (tmp_path / "errors.txt").read_text()
        choose = random.Random(1)
        output, saved = tmp_path / "killed.safetensors", tmp_path / "killed.training" / "state.safetensors"
        kills, reached = 0, set()
        while True:
            before = saved.stat().st_mtime_ns if saved.exists() else 0
            # Once it trains, so that every kill hits something
            death = (killed, partial(is_newer, saved, before), choose.uniform(0, 0.12))
            code = train(output, *(death if kills < wanted else ()))
            if code != -signal.SIGKILL:
                break
            kills += 1
            reached.add(
                json.loads(Path(tmp_path / "killed.training" / "metrics.jsonl").read_text().splitlines()[-1])[
                    "epoch"
                ]
            )
        assert code == 0, (tmp_path / "errors.txt").read_text()
        assert kills == wanted
        assert len(reached) > wanted // 2, "the kills should fall on different epochs"
        one, other = (
            load_file(tmp_path / f"{name}.training" / "state.safetensors") for name in ("whole", "killed")
        )
        assert same(one, other)
        assert same(load_file(tmp_path / "whole.safetensors"), load_file(output))


class TestSeveralProcesses:
    @needs_posix
    @pytest.mark.slow
    def test_two_reach_the_loss_of_one_and_resume_to_the_bit(self, shapes: Path, tmp_path: Path) -> None:
        """BatchNorm sees half a batch in each of two processes on a CPU, so the curves agree closely, not
        exactly.

        `--devices` starts those that are stopped, and passes the signal on; its two interpreters take as long
        as all the rest, so that the others are forked, as it is itself.
        """
        options = [*COMMAND, "--widths", "4,8", "--batch-size", "8", "--epochs", "8", "--lr", "0.01"]

        def command(name: str) -> list[str]:
            return ["train", str(shapes), "-o", str(tmp_path / f"{name}.safetensors"), *options]

        def records(name: str) -> list[dict[str, Any]]:
            return [
                json.loads(line)
                for line in (tmp_path / f"{name}.training" / "metrics.jsonl").read_text().splitlines()
            ]

        one = Forked(one_thread, *command("one"), errors=tmp_path / "errors.txt")
        assert one.wait() == 0, (tmp_path / "errors.txt").read_text()
        first, second = run_together(tmp_path, *command("two"))
        assert (first.count("kept epoch"), second) == (1, ""), "only the first process speaks"
        for one, two in zip(records("one"), records("two"), strict=True):
            assert two["loss"] == pytest.approx(one["loss"], rel=0.03)
        assert records("two")[-1]["val_dice"] == pytest.approx(records("one")[-1]["val_dice"], abs=0.04)
        assert records("one")[-1]["loss"] < 0.8 * records("one")[0]["loss"], "there was something to agree on"

        process = Forked(
            one_thread, *command("stopped"), "--devices", "cpu:2", errors=tmp_path / "stopped.txt", cwd=ROOT
        )
        written = tmp_path / "stopped.training" / "metrics.jsonl"
        try:
            while process.poll() is None and not (written.exists() and written.stat().st_size):
                time.sleep(0.005)
            process.send_signal(signal.SIGTERM)  # as a batch system does before it takes the machine away
            _, errors = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
        assert process.returncode == 130, errors
        assert errors.count("stopping after this step") == errors.count("--resume goes on") == 1, errors
        assert 1 <= len(records("stopped")) < 8
        run_together(tmp_path, *command("stopped"), "--resume")
        whole, parts = (
            load_file(tmp_path / f"{name}.training" / "state.safetensors") for name in ("two", "stopped")
        )
        assert same(whole, parts)


class TestLrFactor:
    def test_warms_up_and_falls_to_nearly_nothing(self) -> None:
        rates = [step.lr_factor(number, 1000) for number in range(1000)]
        top = rates.index(max(rates))
        assert rates[:top] == sorted(rates[:top])
        assert rates[top:] == sorted(rates[top:], reverse=True)
        assert max(rates) == 1.0
        assert 0 < rates[-1] < 0.01
