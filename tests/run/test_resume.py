"""Runs that are cut short, go on, meet another run, or lose the ground under their feet."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import ROOT
from tests.helpers.models import fake_file
from tests.helpers.observers import observing
from tests.helpers.processes import Forked, has_lines, killed
from tests.helpers.runs import done_lines, files, half_bright, many, read, segment_folder, tree, write
from tests.helpers.systems import needs_pipes, needs_posix
from tests.helpers.waiting import PATIENCE
from unet_batch.errors import FolderInUse, ImageError, ManifestError, OutputError, SourceError, UsageError
from unet_batch.files import atomic, locks
from unet_batch.files.locks import claim
from unet_batch.inference import segmenter as segmenter_module
from unet_batch.inference.backends.ensemble import Ensemble
from unet_batch.inference.segmenter import Segmenter
from unet_batch.inference.views import ViewOptions
from unet_batch.media import images, isolation
from unet_batch.model.checkpoint import ModelFile
from unet_batch.run import manifest as manifest_module
from unet_batch.run.execute import execute
from unet_batch.run.manifest import Manifest
from unet_batch.run.merge import merge
from unet_batch.run.observe import Stop
from unet_batch.run.options import RunOptions
from unet_batch.run.plan import prepare, resume
from unet_batch.run.recipe import recipe_of
from unet_batch.run.report import RunReport
from unet_batch.run.shard import Shard
from unet_batch.testing import FakeBackend, fake_spec

pytestmark = pytest.mark.usefixtures("no_thread_is_left")

FAKE = fake_file()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for name in ("a.png", "b.png", "sub/a.png", "sub/deep/c.png"):
        write(folder / name, half_bright())
    return folder


def run(
    folder: Path,
    out: Path,
    on_outcome: Callable[[str], None] = lambda key: None,
    *,
    model: ModelFile = FAKE,
    threshold: float | None = None,
    batch_size: int = 4,
    workers: int = 2,
    answer: Callable[[np.ndarray], np.ndarray] | None = None,
    stop: Stop | None = None,
    log: Callable[[Any], None] = lambda event: None,
    view: ViewOptions | None = None,
    **options: Any,
) -> RunReport:
    plan = prepare(RunOptions((str(folder),), str(out), **options))
    observer = observing(outcome=lambda item, failure: on_outcome(item.key), event=log)
    backend = FakeBackend(answer=answer, batch_size=batch_size)
    with Segmenter(backend, model=model, threshold=threshold, workers=workers, view=view) as segmenter:
        return execute(plan, segmenter, observer, stop)


# What is left


def test_each_reason_to_do_it_again(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(photos / "e.png", half_bright())
    (photos / "f.png").write_bytes(b"")
    assert run(photos, out).states == {"new": 6}
    write(photos / "a.png", np.zeros((64, 96, 3), np.uint8))
    (out / "masks/b.png").unlink()
    mask = (out / "masks/sub/a.png").read_bytes()
    (out / "masks/sub/a.png").write_bytes(mask[: len(mask) // 2])
    write(photos / "g.png", half_bright())
    heard: list[str] = []
    report = run(photos, out, heard.append)
    assert report.states == {"changed": 1, "lost": 2, "failed": 1, "new": 1, "done": 2}
    assert (report.done, report.failed, report.skipped) == (4, 1, 2)
    assert heard == ["a", "b", "f", "g", "sub/a"]
    assert not read(out / "masks/a.png").any(), "the mask of the picture as it is now"
    assert run(photos, out).states == {"done": 6, "failed": 1}


@needs_posix  # on Windows a listing tells the sizes
def test_a_run_with_nothing_to_do_looks_at_each_file_once(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What costs, at 100,000 items: a look at each source and output, a listing of each folder."""
    out = tmp_path / "out"
    run(photos, out)
    looked: Counter[str] = Counter()
    listed: Counter[str] = Counter()
    for name, calls in (("stat", looked), ("lstat", looked), ("open", looked), ("scandir", listed)):
        real = getattr(os, name)

        def counted(path: Any, *args: Any, real: Any = real, calls: Any = calls, **options: Any) -> Any:
            calls[Path(path).relative_to(tmp_path).as_posix() if str(tmp_path) in str(path) else ""] += 1
            return real(path, *args, **options)

        monkeypatch.setattr(os, name, counted)
    plan = prepare(RunOptions((str(photos),), str(out)))
    with Segmenter(FakeBackend(), model=FAKE) as segmenter:
        plan = resume(plan, recipe_of(segmenter))
    monkeypatch.undo()
    assert plan.states == {"done": 4}
    names = ("a.png", "b.png", "sub/a.png", "sub/deep/c.png")
    assert {name: count for name, count in looked.items() if name.endswith(".png")} == {
        f"{top}/{name}": 1 for top in ("photos", "out/masks") for name in names
    }
    folders = ("photos", "photos/sub", "photos/sub/deep", "out/masks", "out/masks/sub", "out/masks/sub/deep")
    assert [listed[folder] for folder in folders] == [1] * 6


def test_a_further_kind_leaves_the_others_on_record(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(photos, out)
    before = (out / "masks/a.png").stat().st_mtime_ns
    assert run(photos, out, save=("overlay",)).states == {"more": 4}
    assert (out / "masks/a.png").stat().st_mtime_ns == before, "only what is asked for is made"
    assert run(photos, out, save=("mask", "overlay")).states == {"done": 4}


def test_moved_sources_are_the_same(photos: Path, tmp_path: Path) -> None:
    """Another mount point, as on another machine."""
    run(photos, tmp_path / "out")
    photos.rename(tmp_path / "elsewhere")
    assert run(tmp_path / "elsewhere", tmp_path / "out").states == {"done": 4}


def test_other_pictures_of_the_same_names_are_not_replaced(photos: Path, tmp_path: Path) -> None:
    """Cameras begin with IMG_0001 anew: two shoots into one folder by mistake."""
    out, other = tmp_path / "out", tmp_path / "other"
    run(photos, out)
    write(other / "a.png", np.zeros((64, 96, 3), np.uint8))
    write(other / "z.png", half_bright())
    before = tree(out)
    with pytest.raises(
        ManifestError, match=rf"outputs of 1 other pictures of the same names, from {photos}$"
    ):
        run(other, out)
    assert tree(out) == before
    (photos / "a.png").unlink()
    assert run(other, out).states == {"changed": 1, "new": 1}, "moved and edited"
    write(photos / "a.png", half_bright())
    assert run(photos, out, overwrite=True).states == {"changed": 1, "void": 3}


def test_touched_sources_by_their_contents(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(photos, out, hash_sources=True)
    for name in ("a.png", "b.png"):
        os.utime(photos / name, (1, 1))
    (photos / "b.png").write_bytes((photos / "b.png").read_bytes()[::-1])
    assert run(photos, out, hash_sources=True).states == {"touched": 1, "changed": 1, "done": 2}
    assert run(photos, out).states == {"failed": 1, "done": 3}, "its new time is on record"
    os.utime(photos / "sub/a.png", (1, 1))
    assert run(photos, out).states == {"changed": 1, "failed": 1, "done": 2}, "not asked for"


def test_what_changes_no_pixel_changes_nothing(photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "out", batch_size=4, workers=1)
    assert run(photos, tmp_path / "out", batch_size=1, workers=3).states == {"done": 4}


@pytest.mark.parametrize(
    "change",
    [
        {"threshold": 0.7},
        {"model": fake_file("f" * 64)},
        {"view": ViewOptions("tile")},
        {"view": ViewOptions("stretch")},
        {"view": ViewOptions(tta="horizontal")},
        {"view": ViewOptions(refine=True)},
        {"view": ViewOptions(value_range="0,100")},
    ],
    ids=["threshold", "model", "tiles", "stretched", "mirrored", "refined", "range"],
)
def test_two_models_are_never_mixed(photos: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    out = tmp_path / "out"
    run(photos, out)
    before = tree(out)
    write(photos / "new.png", half_bright())
    with pytest.raises(
        ManifestError,
        match=r"holds outputs of 4 items by model fake \(sha256 0\), threshold 0.5, 32x48\. This run",
    ) as caught:
        run(photos, out, **change)
    assert "-o" in caught.value.hint
    assert "--overwrite" in caught.value.hint
    assert tree(out) == before
    assert json.loads((out / "run.json").read_text())["status"] == "done", "nothing was begun"
    assert run(photos, out, overwrite=True, **change).states == {"void": 4, "new": 1}
    assert run(photos, out, **change).states == {"done": 5}


def test_tiles_of_another_size_or_place_are_another_recipe(photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "out", view=ViewOptions("tile", 0.25, 0.5))
    assert run(photos, tmp_path / "out", view=ViewOptions("tile", 0.25, 0.5)).states == {"done": 4}
    for view in (ViewOptions("tile", 0.5, 0.5), ViewOptions("tile", 0.25, 0.6), ViewOptions()):
        with pytest.raises(ManifestError, match=r"in tiles that share 25%, at scale 0\.5"):
            run(photos, tmp_path / "out", view=view)


def test_outputs_that_were_removed_hold_nobody_up(photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "out")
    shutil.rmtree(tmp_path / "out/masks")
    assert run(photos, tmp_path / "out", threshold=0.7).done == 4


def test_overwriting_goes_on_without_saying_so_again(photos: Path, tmp_path: Path) -> None:
    out, stop = tmp_path / "out", Stop()
    many(photos, 200)
    run(photos, out)
    report = run(photos, out, lambda key: stop(), stop=stop, overwrite=True, threshold=0.7)
    assert (report.status, report.overwrite, report.states) == ("interrupted", True, {"void": 204})
    assert 0 < report.left < 204
    again = run(photos, out, threshold=0.7)
    assert again.states == {"done": 204 - report.left, "void": report.left}


def test_what_other_sources_left_is_not_passed_over_in_silence(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(photos, out)
    with pytest.raises(ManifestError, match="holds outputs of 4 items"):
        run(photos / "sub", out, threshold=0.7)
    report = run(photos / "sub", out, threshold=0.7, overwrite=True)
    assert report.notes == (
        "outputs of 3 items that are not among these sources stay as another model made them",
    )


def test_a_dry_run_counts_and_writes_nothing(photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "out")
    (tmp_path / "out/masks/a.png").unlink()
    before = files(tmp_path)
    plan = prepare(RunOptions((str(photos),), str(tmp_path / "out"), overwrite=False))
    with Segmenter(FakeBackend(), model=FAKE) as segmenter:
        plan = resume(plan, recipe_of(segmenter))
    assert plan.states == {"lost": 1, "done": 3}
    assert [item.key for item in plan.todo] == ["a"]
    assert files(tmp_path) == before


def test_an_ensemble_is_its_members_and_their_order_where_they_vote() -> None:
    def digest(order: str, classes: int = 1, size: tuple[int, int] = (32, 48)) -> str:
        sizes = {"a": size, "b": (64, 96), "c": (16, 16)}
        members = [FakeBackend(fake_spec(sizes[name], classes)) for name in order]
        backend = members[0] if len(members) == 1 else Ensemble(members)
        with Segmenter(backend, model=[fake_file(name) for name in order]) as segmenter:
            return recipe_of(segmenter).digest

    assert digest("ab") == digest("ba")
    assert digest("abc", 3) != digest("bac", 3)
    assert len({digest("a"), digest("b"), digest("ab"), digest("abc"), digest("ab", size=(32, 32))}) == 5


# Before there were manifests


def before_manifests(out: Path) -> None:
    (out / "manifest.jsonl").unlink()


def test_the_last_runs_model_vouches_for_old_outputs(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(photos, out)
    before_manifests(out)
    (out / "masks/a.png").unlink()
    (out / "masks/b.png").write_bytes(b"")
    report = run(photos, out)
    assert report.states == {"adopted": 2, "new": 2}
    assert run(photos, out).states == {"done": 4}


def test_old_outputs_of_another_model(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(photos, out)
    before_manifests(out)
    with pytest.raises(
        ManifestError,
        match=r"holds outputs for 4 of these items, made by model fake \(sha256 0\), threshold 0.5",
    ):
        run(photos, out, threshold=0.7)
    assert run(photos, out, threshold=0.7, overwrite=True).done == 4


@pytest.mark.parametrize(
    "run_json", [None, "{}", '{"unet_batch": "0", "model": 5}', '{"unet_batch": "0", "status": "sharded"}']
)
@pytest.mark.parametrize("shard", [None, Shard(1, 1)])
def test_somebody_elses_masks_are_not_touched(
    photos: Path, tmp_path: Path, run_json: str | None, shard: Shard | None
) -> None:
    """A data set with `images/` and hand-drawn `masks/`, named as the output folder by mistake."""
    out = tmp_path / "dataset"
    write(out / "masks/a.png", np.eye(64, 96, dtype=np.uint8))
    if run_json:
        (out / "run.json").write_text(run_json)
    drawn = (out / "masks/a.png").read_bytes()
    with pytest.raises(
        ManifestError, match="holds outputs for 1 of these items of which no manifest tells who made them"
    ):
        run(photos, out, shard=shard)
    assert (out / "masks/a.png").read_bytes() == drawn
    assert not (out / "manifest.jsonl").exists()


def test_unrecorded_outputs_of_a_killed_run_are_made_again(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(photos, out)
    lines = (out / "manifest.jsonl").read_bytes().splitlines(keepends=True)
    (out / "manifest.jsonl").write_bytes(lines[0])
    assert run(photos, out).states == {"new": 4}


# Stopping


def test_stop_finishes_what_has_begun(tmp_path: Path) -> None:
    folder, out, stop = many(tmp_path / "photos", 200), tmp_path / "out", Stop()
    report = run(folder, out, lambda key: stop("SIGTERM"), stop=stop)
    assert (report.status, report.signal, report.exit_code) == ("interrupted", "SIGTERM", 143)
    assert 0 < report.done < 150
    assert report.left == 200 - report.done
    assert len(files(out / "masks")) == report.done == sum(done_lines(out).values())
    again = run(folder, out)
    assert (again.status, again.done, again.skipped) == ("done", report.left, report.done)
    assert set(done_lines(out).values()) == {1}


def test_stop_before_the_first(photos: Path, tmp_path: Path) -> None:
    stop = Stop()
    stop("SIGINT")
    report = run(photos, tmp_path / "out", stop=stop)
    assert (report.status, report.done, report.left, report.exit_code) == ("interrupted", 0, 4, 130)


def test_stop_after_the_last_is_done(photos: Path, tmp_path: Path) -> None:
    stop = Stop()
    report = run(photos, tmp_path / "out", lambda key: stop() if key == "sub/deep/c" else None, stop=stop)
    assert (report.status, report.exit_code) == ("done", 0)


@pytest.mark.parametrize("limit", [1, 3])
def test_max_errors(tmp_path: Path, limit: int) -> None:
    folder = many(tmp_path / "photos", 100)
    for index in range(80):
        (folder / f"0/{index:03}.png").write_bytes(b"")
    report = run(folder, tmp_path / "out", max_errors=limit)
    assert report.status == "stopped"
    assert limit <= report.failed < 60, "what was in flight is finished and counted"
    assert report.left
    assert run(folder, tmp_path / "out", max_errors=10_000).status == "failures"


# Bad luck


def flaky(monkeypatch: pytest.MonkeyPatch, fails: Callable[[str, int], int]) -> Counter[str]:
    """Reads of which `fails(name, how many before)` says the errno, or 0."""
    reads: Counter[str] = Counter()
    real = segmenter_module.images.read

    def read(path: str, **options: Any) -> Any:
        name = os.path.basename(path)
        reads[name] += 1
        if code := fails(name, reads[name] - 1):
            raise ImageError(f"{path}: cannot be opened") from OSError(code, os.strerror(code))
        return real(path, **options)

    monkeypatch.setattr(segmenter_module.images, "read", read)
    return reads


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR])
def test_what_a_network_failed_to_read_is_tried_again(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    reads = flaky(monkeypatch, lambda name, before: code if name == "b.png" and before < 3 else 0)
    heard: list[str] = []
    report = run(photos, tmp_path / "out", heard.append, fail_fast=True, retry_pauses=(0.0, 0.01, 0.01))
    assert (report.status, report.done, report.retried) == ("done", 4, 3)
    assert heard == ["a", "sub/a", "sub/deep/c", "b"], "it does not hold up the others"
    assert reads["b.png"] == 4
    assert [stage.items for stage in report.stages] == [7, 7, 4, 4, 4]


def test_what_stays_unreadable_fails_once(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = flaky(monkeypatch, lambda name, before: errno.EIO if name == "b.png" else 0)
    heard: list[str] = []
    report = run(photos, tmp_path / "out", heard.append, retry_pauses=(0.0, 0.0, 0.0))
    assert (report.failed, report.done, report.retried, reads["b.png"]) == (1, 3, 3, 4)
    assert len(heard) == 4


def test_a_file_without_rights_is_not_tried_again(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = flaky(monkeypatch, lambda name, before: errno.EACCES if name == "b.png" else 0)
    assert run(photos, tmp_path / "out").failed == 1
    assert reads["b.png"] == 1


def test_stop_while_waiting_to_try_again(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flaky(monkeypatch, lambda name, before: errno.EIO if name == "b.png" else 0)
    stop = Stop()
    timer = threading.Timer(1.0, stop, ["SIGTERM"])
    timer.start()
    report = run(photos, tmp_path / "out", stop=stop, retry_pauses=(50.0,))
    timer.join()
    assert (report.status, report.done, report.failed, report.left) == ("interrupted", 3, 0, 1)


def test_a_source_that_vanished_is_named(photos: Path, tmp_path: Path) -> None:
    plan = prepare(RunOptions((str(photos),), str(tmp_path / "out")))
    with Segmenter(FakeBackend(), model=FAKE, workers=1) as segmenter:
        observer = observing(start=lambda plan: (photos / "sub/deep/c.png").unlink())
        report = execute(plan, segmenter, observer)
    assert (report.done, report.failed) == (3, 1)
    assert report.failures[0].error == "SourceVanished"
    assert "it was there when the run began, and is gone now" in report.failures[0].message


def test_a_source_that_never_was(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"{photos}/a.png\n{photos}/none.png\n")
    plan = prepare(RunOptions((f"@{tmp_path / 'list.txt'}",), str(tmp_path / "out")))
    with Segmenter(FakeBackend(), model=FAKE) as segmenter:
        report = execute(plan, segmenter)
    assert [failure.error for failure in report.failures] == ["ImageError"]


def test_sources_that_vanish_altogether_end_the_run(tmp_path: Path) -> None:
    folder, out = many(tmp_path / "photos", 200), tmp_path / "out"
    with pytest.raises(SourceError, match="photos vanished while the run read from it") as caught:
        run(folder, out, lambda key: folder.rename(tmp_path / "unplugged") if folder.exists() else None)
    assert "run the same command again" in caught.value.hint
    (tmp_path / "unplugged").rename(folder)
    report = run(folder, out)
    assert report.status == "done"
    assert report.skipped > 0
    assert set(done_lines(out).values()) == {1}


def test_an_output_folder_that_vanishes_ends_the_run(tmp_path: Path) -> None:
    folder, out = many(tmp_path / "photos", 200), tmp_path / "out"

    def pull(key: str) -> None:
        if not (tmp_path / "unplugged").exists():  # what is being written at that moment may bring back `out`
            out.rename(tmp_path / "unplugged")

    with pytest.raises(OutputError, match="vanished while the run wrote to it"):
        run(folder, out, pull)
    assert not (out / "run.json").exists()
    shutil.rmtree(out, ignore_errors=True)  # of what was being written at that moment
    (tmp_path / "unplugged").rename(out)
    report = run(folder, out)
    assert (report.status, len(files(out / "masks"))) == ("done", 200)


def test_a_folder_that_vanished_does_not_come_back_half_empty(photos: Path, tmp_path: Path) -> None:
    """Nor is anything written into the mount point of a disk that was pulled out."""

    def pull(pictures: np.ndarray) -> np.ndarray:
        if not (tmp_path / "unplugged").exists():
            (tmp_path / "out").rename(tmp_path / "unplugged")
            (tmp_path / "out").mkdir()
        return np.asarray(pictures.mean(axis=3), np.uint8)

    with pytest.raises(OutputError, match="vanished"):
        run(photos, tmp_path / "out", answer=pull)
    assert files(tmp_path / "out") == []


def test_a_full_disk_and_then_room(tmp_path: Path, small_disk: Path) -> None:
    folder, out = many(tmp_path / "photos", 300), small_disk / "out"
    subprocess.run(["mount", "-o", "remount,size=1m", small_disk], check=True)
    (small_disk / "ballast").write_bytes(bytes(500_000))  # each small mask takes a page of 4 kB
    with pytest.raises(OutputError, match="the disk is full") as caught:
        run(folder, out)
    assert "run the same command again" in caught.value.hint
    kept = done_lines(out)
    assert 0 < len(kept) < 200
    with pytest.raises(OutputError, match="the disk is full"):
        run(folder, out)
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    report = run(folder, out)
    assert report.status == "done"
    assert len(files(out / "masks")) == 300
    assert not list(out.rglob("*.part"))
    run(folder, tmp_path / "clean")
    assert tree(out) == tree(tmp_path / "clean")


BOUNDARIES = ("open", "decode", "infer", "encode", "write", "replace", "record", "fsync")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.tuples(st.sampled_from(BOUNDARIES), st.integers(0, 25)),
        st.sampled_from([errno.EIO, errno.ENOSPC]),
        max_size=4,
    )
)
def test_faults_at_every_boundary_lose_nothing(tmp_path: Path, faults: dict[tuple[str, int], int]) -> None:
    """Whatever fails when, each run ends; and once nothing fails any more, the folder is as if nothing ever
    had.
    """
    clean = tmp_path / "clean"
    if not clean.exists():
        run(many(tmp_path / "photos", 20), clean)
    out = tmp_path / os.urandom(4).hex()
    counts: Counter[str] = Counter()
    lock = threading.Lock()

    def fault(place: str) -> None:
        with lock:
            counts[place] += 1
            code = faults.get((place, counts[place] - 1))
        if code is not None:
            raise OSError(code, os.strerror(code))

    def failing(place: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            fault(place)
            return real(*arguments, **options)

        return wrapper

    real_read = segmenter_module.images.read

    def read(path: str, **options: Any) -> Any:
        try:
            fault("open")
            fault("decode")
        except OSError as error:
            raise ImageError(f"{path}: cannot be read") from error
        return real_read(path, **options)

    def answer(pictures: np.ndarray) -> np.ndarray:
        try:
            fault("infer")
        except OSError as error:
            raise segmenter_module.BackendError(f"fake: {error}") from error
        return np.asarray(pictures.mean(axis=3) + 0.5, np.uint8)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Manifest, "sync_seconds", 0.0)
        patch.setattr(segmenter_module.images, "read", read)
        patch.setattr(images, "encode_mask", failing("encode", images.encode_mask))
        patch.setattr(atomic.os, "replace", failing("replace", os.replace))
        patch.setattr(atomic, "open_temporary", failing("write", atomic.open_temporary))
        patch.setattr(manifest_module.os, "write", failing("record", os.write))
        patch.setattr(manifest_module.os, "fsync", failing("fsync", os.fsync))
        for _ in range(8):
            with suppress(OutputError):
                report = run(tmp_path / "photos", out, answer=answer, retry_pauses=(0.0, 0.0))
                assert report.done + report.failed + report.skipped == 20
                if report.status == "done":
                    break
        else:
            pytest.fail("four faults do not last for eight runs")
    assert tree(out) == tree(clean)
    assert not list(out.rglob("*.part"))


# Two runs, one folder


def test_a_second_run_is_refused_and_hears_who_is_there(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with claim(str(out)):
        for shard in (None, Shard(1, 2)):
            with pytest.raises(
                FolderInUse, match=rf"another run \(process {os.getpid()} on .+, since 20.+\) is writing"
            ) as caught:
                run(photos, out, shard=shard)
            assert "--wait" in caught.value.hint
    assert not (out / "run.json").exists()
    assert run(photos, out).done == 4
    assert not list(out.glob(".*.owner"))


def test_shards_and_a_whole_run_exclude_each_other(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with claim(str(out), "1-of-2"):
        for shard in (None, Shard(1, 2), Shard(2, 3)):
            with pytest.raises(FolderInUse, match="shard 1/2 of another run"):
                run(photos, out, shard=shard)
        run(photos, out, shard=Shard(2, 2))
    run(photos, out, shard=Shard(1, 2))
    assert run(photos, out).states == {"done": 4}


def test_the_second_waits(photos: Path, tmp_path: Path) -> None:
    out, told = tmp_path / "out", []
    out.mkdir()
    holding, ready = threading.Event(), threading.Event()

    def hold() -> None:
        with claim(str(out)):
            ready.set()
            holding.wait(PATIENCE)

    other = threading.Thread(target=hold)
    other.start()
    ready.wait(PATIENCE)
    plan = prepare(RunOptions((str(photos),), str(out), wait=True))

    def on_wait(owner: str) -> None:
        told.append(owner)
        holding.set()

    with Segmenter(FakeBackend(), model=FAKE) as segmenter:
        report = execute(plan, segmenter, observing(wait=on_wait))
    other.join()
    assert report.done == 4
    assert len(told) == 1
    assert told[0].startswith("another run (process ")


def test_a_killed_owner_holds_nothing(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    program = "import os, sys; from unet_batch.files.locks import claim\nwith claim(sys.argv[1]): os._exit(9)"
    subprocess.run([sys.executable, "-c", program, str(out)], cwd=ROOT, check=False, timeout=PATIENCE)
    assert (out / ".run.owner").exists()
    assert run(photos, out).done == 4


def test_a_file_system_without_locks(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(locks, "_blocker", refuse)
    report = run(photos, tmp_path / "out")
    assert report.done == 4
    assert "has no locks" in report.notes[0]


def test_two_that_start_together_do_everything_once(tmp_path: Path) -> None:
    """Both with --wait, in processes of their own."""
    folder, out = many(tmp_path / "photos", 60), tmp_path / "out"
    processes = [start(folder, out, wait=True) for _ in range(2)]
    for process in processes:
        assert process.wait(PATIENCE) == 0
    assert set(done_lines(out).values()) == {1}
    assert len(done_lines(out)) == 60


# Shards


def shards(folder: Path, out: Path, count: int) -> list[RunReport]:
    return [run(folder, out, shard=Shard(number, count)) for number in range(1, count + 1)]


def test_shards_joined_are_one_run(tmp_path: Path) -> None:
    folder, out, whole = many(tmp_path / "photos", 40), tmp_path / "out", tmp_path / "whole"
    for name in ("x/bad.png", "1/bad.png", "bad.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"")
    single = run(folder, whole)
    reports = shards(folder, out, 4)
    assert sum(report.found for report in reports) == single.found == 43
    assert all(report.found for report in reports)
    assert tree(out) == tree(whole)
    assert (out / "run-2-of-4.json").exists()
    assert prepare(RunOptions((str(folder),))).sources.skipped_folders == ()
    merged = merge(str(out))
    assert files(out) == files(whole)
    assert tree(out) == tree(whole)
    assert (out / "errors.jsonl").read_text() == (whole / "errors.jsonl").read_text()
    one, other = (json.loads((path / "run.json").read_text()) for path in (out, whole))
    for name in (
        "status",
        "found",
        "skipped",
        "done",
        "failed",
        "failures",
        "states",
        "model",
        "save",
        "shard",
        "overwrite",
    ):
        assert one[name] == other[name], name
    assert [stage["items"] for stage in one["stages"]] == [stage["items"] for stage in other["stages"]]
    assert (merged.status, merged.done, merged.failed) == ("failures", 40, 3)
    assert run(folder, out).states == {"done": 40, "failed": 3}


def test_an_output_folder_of_shards_is_never_a_source(tmp_path: Path) -> None:
    folder = many(tmp_path / "photos", 10)
    run(folder, folder / "out", shard=Shard(1, 2))
    assert len(prepare(RunOptions((str(folder),), str(tmp_path / "elsewhere"))).items) == 10


def test_shards_side_by_side(tmp_path: Path) -> None:
    folder, out = many(tmp_path / "photos", 120), tmp_path / "out"
    processes = [start(folder, out, shard=Shard(number, 4)) for number in range(1, 5)]
    assert [process.wait(PATIENCE) for process in processes] == [0] * 4
    assert len(done_lines(out)) == 120
    assert set(done_lines(out).values()) == {1}
    run(folder, tmp_path / "whole")
    assert merge(str(out)).status == "done"
    assert tree(out) == tree(tmp_path / "whole")


def test_another_number_of_shards_later(tmp_path: Path) -> None:
    folder, out = many(tmp_path / "photos", 40), tmp_path / "out"
    shards(folder, out, 2)
    for index in range(40, 50):
        write(folder / f"{index}.png", half_bright())
    later = shards(folder, out, 3)
    assert sum(report.skipped for report in later) == 40
    assert sum(report.done for report in later) == 10
    merged = merge(str(out))
    assert (merged.found, merged.skipped, merged.done) == (50, 40, 10)
    assert not [name for name in files(out) if "-of-" in name]


def test_a_shard_that_is_missing(tmp_path: Path) -> None:
    folder, out = many(tmp_path / "photos", 20), tmp_path / "out"
    run(folder, out, shard=Shard(1, 3))
    with pytest.raises(UsageError, match="2 of 3 shards have not finished: 2/3 and others"):
        merge(str(out))
    run(folder, out)
    merged = merge(str(out))
    assert (merged.status, merged.found) == ("done", 20), "the later run has done the rest"
    with pytest.raises(UsageError, match="no manifests of shards"):
        merge(str(out))
    with pytest.raises(UsageError, match="no manifests of shards"):
        merge(str(tmp_path / "none"))


def test_a_merge_that_is_cut_short_is_finished_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = many(tmp_path / "photos", 20)
    (folder / "bad.png").write_bytes(b"")
    run(folder, tmp_path / "whole")
    real = os.unlink
    for limit in range(0, 12):
        out, left = tmp_path / f"out{limit}", limit
        shards(folder, out, 3)

        def unlink(path: str) -> None:
            nonlocal left
            if not left and "-of-" in path and ".owner" not in path:
                raise KeyboardInterrupt
            real(path)
            left -= "-of-" in path

        with monkeypatch.context() as patch:
            patch.setattr(atomic.os, "unlink", unlink)
            with pytest.raises(KeyboardInterrupt) if limit < 7 else pytest.MonkeyPatch.context():
                merge(str(out))
        if list(out.glob("manifest-*")):
            merge(str(out))
        assert tree(out) == tree(tmp_path / "whole")
        assert (out / "errors.jsonl").read_text() == (tmp_path / "whole/errors.jsonl").read_text()
        report = json.loads((out / "run.json").read_text())
        assert (report["found"], report["failed"], report["status"]) == (21, 1, "failures")
        if limit == 7:
            break


def test_unreadable_folders_are_told_once(tmp_path: Path) -> None:
    folder, out = many(tmp_path / "photos", 10), tmp_path / "out"
    (folder / "2019").symlink_to(tmp_path / "unplugged")
    reports = shards(folder, out, 2)
    assert [report.failed for report in reports] == [1, 0]
    assert [report.left for report in reports] == [0, 0]
    assert merge(str(out)).failed == 1


# Events


def test_events(photos: Path, tmp_path: Path) -> None:
    (photos / "bad.png").write_bytes(b"")
    events: list[dict[str, Any]] = []

    def log(event: Any) -> None:
        events.append(json.loads(json.dumps(event)))

    run(photos, tmp_path / "out", log=log, progress_seconds=0.0)
    kinds = Counter(event["event"] for event in events)
    assert kinds == {"start": 1, "item": 5, "progress": 5, "end": 1}
    assert [events[0]["event"], events[-1]["event"]] == ["start", "end"]
    assert events[0]["found"] == 5
    assert {key: events[-1][key] for key in ("status", "done", "failed", "left")} == {
        "status": "failures",
        "done": 4,
        "failed": 1,
        "left": 0,
    }
    for event in events:
        assert event["at"] > 1e9
        if event["event"] == "item" and event["status"] == "done":
            assert 0 < event["seconds"]["write"] <= event["seconds"]["all"]
        if event["event"] == "item" and event["status"] == "failed":
            assert (event["key"], event["stage"], event["error"]) == ("bad", "decode", "ImageError")
    report = json.loads((tmp_path / "out/run.json").read_text())
    assert set(report["backlog"]) == {"decode", "infer", "render", "write"}
    assert all(0 <= figures["mean"] <= figures["most"] for figures in report["backlog"].values())


# Killed


def start(folder: Path, out: Path, **options: Any) -> Forked:
    return Forked(segment_folder, str(folder), str(out), options, errors=folder.parent / "errors.txt")


@pytest.mark.slow
@needs_posix
def test_killed_at_fifty_random_moments_over_500_photos(tmp_path: Path) -> None:
    folder, out = many(tmp_path / "photos", 500), tmp_path / "out"
    choose = random.Random(1)
    kills = 0
    sizes = []
    while True:
        # At some moment after it has recorded something, so that it ends before the photos do
        recorded = partial(has_lines, out / "manifest.jsonl", len(lines(out)) + choose.randrange(1, 4))
        death = (killed, recorded, choose.uniform(0, 0.004)) if kills < 50 else ()
        process = Forked(*death, segment_folder, str(folder), str(out), {})
        code = process.wait(PATIENCE)
        if code != -signal.SIGKILL:
            break
        kills += 1
        sizes.append(len(done_lines(out)))
        for path in (out / "masks").rglob("*.png"):
            assert read(path).shape == (8, 12), "never half a file under its own name"
    assert code == 0
    assert kills == 50, sizes
    assert set(done_lines(out).values()) == {1}, "nothing was done again once it was on record"
    run(folder, tmp_path / "clean")
    assert tree(out) == tree(tmp_path / "clean")
    assert not list(out.rglob("*.part"))


def lines(out: Path) -> list[bytes]:
    try:
        return (out / "manifest.jsonl").read_bytes().splitlines()
    except FileNotFoundError:
        return []


# Twenty thousand


def png(height: int, width: int, pixels: bytes) -> bytes:
    """A grey PNG whose header may announce more than there is."""
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(pixels)),
        (b"IEND", b""),
    ]
    chunks = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


GOOD = png(8, 12, bytes(13 * 8))
CORRUPT: dict[str, tuple[bytes | None, str]] = {  # what the file holds, and what the run says of it
    "truncated.png": (GOOD[:40], "it holds no pixel data"),
    "flipped.png": (GOOD[:45] + bytes([GOOD[45] ^ 255]) + GOOD[46:], "fails its checksum"),
    "empty.png": (b"", "an empty file"),
    "zeros.png": (bytes(100), "a file of zero bytes"),
    "text.jpg": (b"hello\n", "looks like a text file"),
    "document.jpg": (b"%PDF-1.7\n\x80", "not an image format known here"),
    "header.png": (png(100_000, 100_000, b"\0"), "10,000,000,000 pixels, the limit is"),
    "bomb.png": (png(30_000, 30_000, bytes(10**6)), "900,000,000 pixels, the limit is"),
    "link.png": (None, "no such file"),
    "pipe.png": (None, "is not a regular file"),
}


@pytest.mark.slow
@pytest.mark.usefixtures("one_core")
@needs_pipes
def test_ten_thousand_files_of_which_five_hundred_are_corrupt(tmp_path: Path) -> None:
    folder, out = tmp_path / "photos", tmp_path / "out"
    for index in range(10_000):
        path = folder / f"{index // 500}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if index % 20:
            path.write_bytes(GOOD)
            continue
        name, (data, _) = list(CORRUPT.items())[index // 20 % 10]
        path = path.with_name(f"{index}-{name}")
        if data is not None:
            path.write_bytes(data)
        elif name == "link.png":
            path.symlink_to("nowhere")
        else:
            os.mkfifo(path)
    (folder / "folder.jpg").mkdir()
    process, resident = psutil.Process(), []
    begun = time.process_time()
    plan = prepare(RunOptions((str(folder),), str(out)))
    started: list[float] = []
    with Segmenter(FakeBackend(batch_size=16), model=FAKE, workers=1) as segmenter:
        observer = observing(
            start=lambda plan: started.append(time.process_time() - begun),
            outcome=lambda item, failure: resident.append(process.memory_info().rss),
        )
        report = execute(plan, segmenter, observer)
    assert (report.done, report.failed, report.left) == (9500, 500, 0)
    assert started[0] < 2.5
    assert max(resident[3000:]) - resident[2999] < 2000 * 7000, "bytes that are kept of an item"
    said = [json.loads(line) for line in (out / "errors.jsonl").read_text().splitlines()]
    for name, (_, reason) in CORRUPT.items():
        found = [line["message"] for line in said if line["path"].endswith(name)]
        assert len(found) == 50
        assert all(reason in message for message in found), (name, found[0])
    begun = time.process_time()
    again = run(folder, out)
    assert again.states == {"done": 9500, "failed": 500}
    assert time.process_time() - begun < 2.5 + 1  # the five hundred are tried again, too
    assert set(done_lines(out).values()) == {1}


def test_what_crashed_its_decoder_is_quarantined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "READER", "tests.helpers.readers:obey")
    folder = tmp_path / "photos"
    folder.mkdir()
    write(folder / "a.png", half_bright())
    (folder / "crash.jpg").write_text("segfault\n")

    def segment(**options: Any) -> RunReport:
        plan = prepare(RunOptions((str(folder),), **options))
        with Segmenter(FakeBackend(), model=FAKE, workers=1, isolate=plan.options.isolate) as segmenter:
            return execute(plan, segmenter)

    report = segment(isolate=True)
    assert (report.done, report.failed, report.failures[0].error) == (1, 1, "DecoderCrashed")
    report = segment()  # in this process, the crash would end it
    assert (report.done, report.failed, report.skipped, report.status) == (0, 1, 1, "failures")
    assert report.states["quarantined"] == 1
    assert "--isolate" in report.failures[0].hint
    assert segment(isolate=True).states["failed"] == 1
    write(folder / "crash.jpg", half_bright())  # it was repaired
    report = segment()
    assert (report.done, report.failed) == (1, 0)
