"""The saved state: what is read back goes on as if nothing had happened, and nothing else is read."""

from __future__ import annotations

import copy
import errno
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.helpers.tiny import tiny_model, tiny_spec
from unet_batch.errors import OutputError, TrainingError
from unet_batch.files import atomic
from unet_batch.model import checkpoint
from unet_batch.model.unet import UNet
from unet_batch.training import state
from unet_batch.training.losses import segmentation_loss
from unet_batch.training.state import Progress

PROGRESS = {"step", "updates", "loss", "seconds", "scaler", "shares", "history"}
FINGERPRINT = {"epochs": 3, "size": (32, 48), "lr": 1e-3, "pictures": "abc"}


class Training:
    """A network, its mean and its optimizer, as the loop sets them up."""

    def __init__(self, *, channels_last: bool = True, fused: bool = True, seed: int = 0) -> None:
        torch.manual_seed(seed)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.model = UNet(3, 2, (4, 8)).to(memory_format=layout)  # type: ignore[call-overload]
        self.mean = copy.deepcopy(self.model).requires_grad_(False).eval()
        groups = [
            {"params": [p for p in self.model.parameters() if p.dim() > 1], "weight_decay": 0.01},
            {"params": [p for p in self.model.parameters() if p.dim() <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-2, fused=fused)
        self.progress = Progress()

    def steps(self, count: int) -> None:
        for _ in range(count):
            random = torch.Generator().manual_seed(self.progress.step)
            pictures = torch.randn(2, 3, 16, 24, generator=random).contiguous(
                memory_format=torch.channels_last
            )
            ids = torch.randint(0, 2, (2, 16, 24), generator=random)
            self.optimizer.zero_grad()
            segmentation_loss(self.model(pictures), ids).backward()
            self.optimizer.step()
            for old, new in zip(
                self.mean.state_dict().values(), self.model.state_dict().values(), strict=True
            ):
                old.lerp_(new, 0.1) if old.is_floating_point() else old.copy_(new)
            self.progress.step += 1
            self.progress.updates += 1

    def save(self, path: Path, **changes: object) -> None:
        state.save_state(
            str(path), self.model, self.mean, self.optimizer, self.progress, {**FINGERPRINT, **changes}
        )

    def load(self, path: Path, **changes: object) -> None:
        self.progress = state.load_state(
            str(path), self.model, self.mean, self.optimizer, {**FINGERPRINT, **changes}
        )

    def everything(self) -> dict[str, torch.Tensor]:
        return {
            **{f"model {name}": value for name, value in self.model.state_dict().items()},
            **{f"mean {name}": value for name, value in self.mean.state_dict().items()},
            **{
                f"{key} {name}": value
                for name, parameter in self.model.named_parameters()
                for key, value in self.optimizer.state[parameter].items()
            },
        }


def same(one: Training, other: Training) -> bool:
    first, second = one.everything(), other.everything()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "m.training" / "state.safetensors"


@pytest.fixture
def saved(path: Path) -> Training:
    training = Training()
    training.steps(1)
    training.save(path)
    return training


def test_the_names_in_the_file_stay(path: Path, saved: Training) -> None:
    """A training that an earlier version began is taken up by this one."""
    with safe_open(path, "pt") as file:
        kinds = {name.partition(".")[0] for name in file.keys()}  # noqa: SIM118 - it is no mapping
        metadata = file.metadata()
    assert kinds == {"model", "mean", "first", "second"}
    assert set(metadata) == {"format", "version", "progress", "fingerprint"}
    assert (metadata["format"], metadata["version"]) == ("unet-batch training state", "1")
    assert set(json.loads(metadata["progress"])) == PROGRESS


class TestRoundTrip:
    @pytest.mark.parametrize("fused", [False, True])
    @pytest.mark.parametrize("there", [False, True])
    @pytest.mark.parametrize("here", [False, True])
    def test_goes_on_to_the_bit(self, path: Path, here: bool, there: bool, fused: bool) -> None:
        first = Training(channels_last=here, fused=fused)
        first.steps(3)
        first.save(path)
        second = Training(channels_last=there, fused=fused, seed=1)
        second.load(path)
        assert same(first, second)
        if here == there:  # else convolutions may add in another order
            first.steps(3)
            second.steps(3)
            assert same(first, second)
            assert not same(first, Training())

    def test_moments_lie_in_memory_like_their_weights(self, path: Path, saved: Training) -> None:
        other = Training(seed=1)
        other.load(path)
        layouts = set()
        for parameter in other.model.parameters():
            moments = other.optimizer.state[parameter]
            assert moments["exp_avg"].stride() == moments["exp_avg_sq"].stride() == parameter.stride()
            layouts.add(parameter.is_contiguous())
        assert layouts == {False, True}
        assert other.optimizer.state[parameter]["step"] == 1
        assert (
            other.optimizer.state[parameter]["step"]
            is not other.optimizer.state[next(other.model.parameters())]["step"]
        )

    def test_groups_keep_the_options_of_this_run(self, path: Path, saved: Training) -> None:
        other = Training()
        other.optimizer.param_groups[0]["lr"] = 0.5
        other.load(path)
        assert other.optimizer.param_groups[0]["lr"] == 0.5
        assert [group["weight_decay"] for group in other.optimizer.param_groups] == [0.01, 0.0]
        assert sum(len(group["params"]) for group in other.optimizer.param_groups) == len(
            list(other.model.parameters())
        )

    def test_progress_comes_back(self, path: Path) -> None:
        training = Training()
        history = [{"epoch": 1, "val_dice": 0.1 + 0.2, "seconds": 3.1}]
        training.progress = Progress(7, 6, 1 / 3, 12.5, 32768.0, [0.9, 0.1], history)
        training.save(path)
        other = Training()
        other.load(path)
        assert other.progress == training.progress

    def test_before_the_first_step_there_are_no_moments(self, path: Path) -> None:
        first, second = Training(), Training(seed=1)
        first.save(path)
        assert not [name for name in load_file(path) if name.startswith(("first.", "second."))]
        second.load(path)
        for each in (first, second):
            each.steps(2)
        assert same(first, second)

    def test_nothing_is_rounded(self, path: Path, saved: Training) -> None:
        tensors = load_file(path)
        assert {value.dtype for value in tensors.values()} == {torch.float32, torch.int64}
        assert {name.split(".")[0] for name in tensors} == {"model", "mean", "first", "second"}


class TestRefused:
    def test_nothing_to_resume(self, path: Path) -> None:
        with pytest.raises(TrainingError, match="no training to resume") as error:
            Training().load(path)
        assert "--resume" in error.value.hint

    @pytest.mark.parametrize(
        ("changes", "told"),
        [
            ({"epochs": 4}, r"another training: epochs \(then 3, now 4\) changed"),
            ({"lr": 0.01, "epochs": 9}, r"epochs \(then 3, now 9\), lr \(then 0\.001, now 0\.01\) changed"),
            ({"size": (32, 40)}, r"size \(then \[32, 48\], now \[32, 40\]\)"),
            ({"pictures": "abd"}, r"another training: pictures changed"),
            ({"flip": "any"}, r"flip \(then None, now 'any'\)"),
        ],
    )
    def test_another_training(
        self, path: Path, saved: Training, changes: dict[str, object], told: str
    ) -> None:
        other = Training(seed=1)
        before = copy.deepcopy(other.model.state_dict())
        with pytest.raises(TrainingError, match=told) as error:
            other.load(path, **changes)
        assert "--overwrite" in error.value.hint
        assert all(torch.equal(value, before[name]) for name, value in other.model.state_dict().items())

    @pytest.mark.parametrize("size", [0, 5, 8, 300, -1])
    def test_a_file_that_was_cut_off(self, path: Path, saved: Training, size: int) -> None:
        path.write_bytes(path.read_bytes()[:size])
        with pytest.raises(TrainingError, match="damaged, or not a training's state") as error:
            Training().load(path)
        assert str(path) in error.value.message

    def test_other_kinds_of_files(self, path: Path) -> None:
        path.parent.mkdir()
        spec = tiny_spec()
        checkpoint.save(str(path), tiny_model(spec), spec)
        with pytest.raises(TrainingError, match="not a training's state"):
            Training().load(path)
        save_file({"a": torch.zeros(1)}, path)
        with pytest.raises(TrainingError, match="not a training's state"):
            Training().load(path)
        path.write_text("no tensors at all, but long enough to hold a header")
        with pytest.raises(TrainingError, match="not a training's state"):
            Training().load(path)
        path.unlink()
        path.mkdir()
        with pytest.raises(TrainingError, match="not a training's state"):
            Training().load(path)

    def test_another_version_whatever_it_holds(self, path: Path) -> None:
        path.parent.mkdir()
        metadata = {"version": "2", "progress": '{"steps": 3}', "fingerprint": "{}"}
        save_file({"a": torch.zeros(1)}, path, metadata)
        with pytest.raises(TrainingError, match="a state of version 2, this program reads 1"):
            Training().load(path)


class TestWriting:
    def test_a_full_disk_leaves_the_earlier_state(
        self, path: Path, saved: Training, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = path.read_bytes()

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        saved.steps(1)
        with monkeypatch.context() as patch:
            patch.setattr(atomic.os, "fsync", full)
            with pytest.raises(OutputError, match=path.name):
                saved.save(path)
        assert path.read_bytes() == before
        assert os.listdir(path.parent) == [path.name]
        saved.save(path)
        other = Training(seed=1)
        other.load(path)
        assert same(saved, other)

    def test_a_folder_that_is_a_file(self, path: Path) -> None:
        path.parent.write_text("in the way")
        with pytest.raises(OutputError):
            Training().save(path)
