"""Runs whose pictures are decoded, drawn and written by worker processes: the same bytes, whatever dies."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tifffile
from PIL import Image

from tests.helpers.runs import files, half_bright, segment, write
from tests.helpers.waiting import until
from unet_batch.errors import BackendError, OutputError, RunError
from unet_batch.inference.backends.base import Backend
from unet_batch.inference.backends.ensemble import Ensemble
from unet_batch.inference.segmenter import Segmenter
from unet_batch.inference.views import ViewOptions
from unet_batch.media import isolation
from unet_batch.processes.process import Worker
from unet_batch.run.execute import execute
from unet_batch.run.options import RunOptions
from unet_batch.run.plan import prepare
from unet_batch.run.report import RunReport
from unet_batch.testing import FakeBackend, fake_spec

pytestmark = [
    pytest.mark.usefixtures("no_thread_is_left"),
    pytest.mark.skipif(os.name != "posix", reason="sends signals"),
]
ROOT = Path(__file__).resolve().parents[2]
SPOILT = "tests.helpers.worker_readers:read"
LOOK = "tests.helpers.worker_functions:look"


def run(
    folder: Path,
    out: Path,
    backend: Backend | None = None,
    view: ViewOptions | None = None,
    **options: Any,
) -> RunReport:
    """An isolated run."""
    plan = prepare(RunOptions((str(folder),), str(out), isolate=True, **options))
    with Segmenter(backend or FakeBackend(), workers=2, isolate=True, view=view) as segmenter:
        return execute(plan, segmenter)


def outputs(folder: Path) -> dict[str, bytes]:
    """The files of a run but for what it says of itself, temporary ones included."""
    told = {"run.json", "manifest.jsonl", "errors.jsonl", ".run.lock", ".died"}
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if name not in told}


def noise(seed: int, height: int = 24, width: int = 36) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for number in range(6):
        write(folder / f"{number}.png", noise(number))
    return folder


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """Rotated, transparent, with values missing, of 16 bits, grey, large, of several pages."""
    folder = tmp_path / "odd"
    exif = Image.Exif()
    exif[0x0112], exif[0x8298] = 6, "somebody"
    write(folder / "rotated.jpg", noise(1, 60, 90), exif=exif)
    write(folder / "clear.png", np.dstack([noise(2), noise(3)[..., 0]]))
    values = np.linspace(0.2, 1, 64 * 96, dtype=np.float32).reshape(64, 96)
    values[np.random.default_rng(0).random((64, 96)) < 0.3] = -9999
    tifffile.imwrite(folder / "survey.tif", values, extratags=[(42113, 2, 6, "-9999", True)], metadata=None)
    Image.fromarray(np.arange(40 * 50, dtype=np.uint16).reshape(40, 50) * 30).save(folder / "deep.png")
    write(folder / "sub" / "grey é.png", noise(4)[..., 0])
    write(folder / "large.jpg", noise(5, 400, 600))
    pages = [Image.fromarray(noise(6)), Image.fromarray(noise(7))]
    pages[0].save(folder / "pages.tif", save_all=True, append_images=pages[1:])
    place = [(33550, 12, 3, (0.5, 0.5, 0.0), True), (33922, 12, 6, (0.0, 0.0, 0.0, 7.0, 8.0, 0.0), True)]
    tifffile.imwrite(folder / "placed.tif", noise(8), photometric="rgb", extratags=place, metadata=None)
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


@pytest.mark.parametrize(
    ("classes", "save", "view"),
    [
        (1, ("mask", "overlay", "cutout", "prob", "prob16"), ViewOptions()),
        (1, ("mask", "geotiff"), ViewOptions()),
        (1, ("contour", "sheet", "background", "blur", "pixelate", "palette", "prob32"), ViewOptions()),
        (3, ("mask", "overlay"), ViewOptions()),
        (1, ("mask", "overlay"), ViewOptions("tile", scale=0.7)),
        (1, ("mask", "prob16"), ViewOptions(refine=True)),
        (3, ("mask",), ViewOptions("stretch", tta="flips")),
        (1, ("mask", "overlay"), ViewOptions(value_range="percentile")),
        (2, ("mask", "overlay"), ViewOptions()),
    ],
)
def test_the_same_bytes_and_the_same_notes(
    odd: Path, tmp_path: Path, classes: int, save: tuple[str, ...], view: ViewOptions
) -> None:
    def backend() -> Backend:
        if classes == 1:
            return FakeBackend()
        if classes == 2:  # of one class, but two models
            return Ensemble([FakeBackend(), FakeBackend(fake_spec((60, 40)))])
        return FakeBackend(fake_spec(classes=3), lambda batch: (batch.mean(axis=3) // 86).astype(np.uint8))

    isolated = run(odd, tmp_path / "isolated", backend(), view, save=save)
    plain, _ = segment(odd, output=tmp_path / "plain", backend=backend(), view=view, save=save)
    found = outputs(tmp_path / "isolated")
    assert len(found) == 8 * len(save)
    assert found == outputs(tmp_path / "plain")
    assert (isolated.done, isolated.failed) == (plain.done, plain.failed) == (8, 1)
    assert isolated.failures == plain.failures
    assert isolated.file_notes == plain.file_notes != []


@pytest.mark.parametrize("moment", ["prepare", "between", "finish"])
def test_a_worker_that_is_killed_costs_time_and_nothing_else(
    photos: Path, tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it decodes; while it keeps pictures for the network; while it draws."""
    real, killed = Worker.ask, []

    def ask(self: Worker, function: bytes, *rest: Any) -> Any:
        named = function.decode().rpartition(":")[2]
        if moment == named and not killed:
            killed.append(self)
            os.kill(self._process.pid, signal.SIGKILL)
        answer = real(self, function, *rest)
        if moment == "between" and named == "prepare" and len(killed) < 2:
            killed.append(self)
            os.kill(self._process.pid, signal.SIGKILL)
        return answer

    monkeypatch.setattr(Worker, "ask", ask)
    save = ("mask", "overlay")
    report = run(photos, tmp_path / "isolated", save=save)
    assert killed
    assert (report.done, report.failed) == (6, 0)
    segment(photos, output=tmp_path / "plain", save=save)
    assert outputs(tmp_path / "isolated") == outputs(tmp_path / "plain")


def test_workers_killed_at_random_moments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but fresh ones: one that dies over its first request, too, is the picture's fault."""
    folder = tmp_path / "photos"
    for number in range(60):
        write(folder / f"{number}.png", noise(number))
    real, rng, used, killed = Worker.ask, random.Random(5), set(), []

    def ask(self: Worker, *request: Any) -> Any:
        if self in used and len(killed) < 4 and rng.random() < 0.15:
            killed.append(self)
            os.system(f"(sleep {rng.random() / 100}; kill -9 {self._process.pid}) &")
        used.add(self)
        return real(self, *request)

    monkeypatch.setattr(Worker, "ask", ask)
    save = ("mask", "cutout")
    report = run(folder, tmp_path / "isolated", save=save)
    assert len(killed) > 2
    assert (report.done, report.failed) == (60, 0)
    segment(folder, output=tmp_path / "plain", save=save)
    assert outputs(tmp_path / "isolated") == outputs(tmp_path / "plain")


def test_what_a_killed_worker_left_half_written_is_gone_after_the_run(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolation, "READER", SPOILT)
    monkeypatch.setenv("WRITING", "die")
    report = run(photos, tmp_path / "out")
    assert (tmp_path / "out/.died").exists()
    assert (report.done, report.failed) == (6, 0)
    assert sorted(outputs(tmp_path / "out")) == [f"masks/{number}.png" for number in range(6)]


def test_drawing_that_ends_two_workers_fails_by_name(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolation, "READER", SPOILT)
    for times in (1, 2):
        write(photos / f"crash-{times}.png", noise(9))
    report = run(photos, tmp_path / "out")
    assert (report.done, report.failed) == (7, 1)
    (failure,) = report.failures
    assert (failure.stage, failure.error) == ("render", "EncodeError")
    path = photos / "crash-2.png"
    assert failure.message == f"{path}: its worker crashed (SIGSEGV) twice while it made the outputs"
    assert "masks/crash-1.png" in files(tmp_path / "out")


def test_a_full_disk_ends_the_run_in_the_same_words(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolation, "READER", SPOILT)
    monkeypatch.setenv("WRITING", "full")
    out = tmp_path / "out"
    with pytest.raises(OutputError, match=r"cannot be written: the disk is full: \d+ bytes") as caught:
        run(photos, out)
    assert "free some space" in caught.value.hint
    assert "run the same command again" in caught.value.hint
    monkeypatch.setattr(isolation, "READER", "unet_batch.media.images:read")
    assert run(photos, out).done == 6


@pytest.mark.parametrize(("asked", "stage"), [(b":prepare", "decode"), (b":finish", "render")])
def test_no_space_between_the_processes_is_said_with_what_helps(
    asked: bytes, stage: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = Worker.ask

    def fill(self: Worker, function: bytes, *arguments: Any) -> Any:
        if function.endswith(asked):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return ask(self, function, *arguments)

    monkeypatch.setattr(Worker, "ask", fill)
    report = run(photos, tmp_path / "out")
    assert (report.done, {failure.stage for failure in report.failures}) == (0, {stage})
    first = report.failures[0]
    assert first.message == f"{photos / '0.png'}: no space to hand over its pixels: No space left on device"
    assert "leave --isolate out" in first.hint


def test_a_folder_that_vanishes_does_not_come_back(photos: Path, tmp_path: Path) -> None:
    out, heard = tmp_path / "out", []

    def answer(batch: np.ndarray) -> np.ndarray:
        if not heard:
            heard.append(out.rename(tmp_path / "elsewhere"))
        return batch[..., 0].copy()

    with pytest.raises(OutputError, match="vanished while the run wrote to it"):
        run(photos, out, FakeBackend(answer=answer))
    assert not out.exists()


def test_a_worker_that_cannot_start_ends_the_run(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolation, "READER", "nowhere:read")
    with pytest.raises(RunError, match=r"cannot start a worker process .*No module named 'nowhere'"):
        run(photos, tmp_path / "out")


def test_what_the_network_fails_on_is_not_kept_by_its_worker(photos: Path, tmp_path: Path) -> None:
    def answer(batch: np.ndarray) -> np.ndarray:
        raise BackendError("the device failed")

    plan = prepare(RunOptions((str(photos),), str(tmp_path / "out"), save=("overlay",), isolate=True))
    with Segmenter(FakeBackend(answer=answer), workers=1, isolate=True) as segmenter:
        report = execute(plan, segmenter)
        assert report.failed == 6
        assert segmenter._workers is not None
        assert segmenter._workers.ask(LOOK, b"").head == b"[]"


def test_pixels_kept_by_workers_count_as_in_flight(photos: Path, tmp_path: Path) -> None:
    """The photo's 2.6 kB, and the 4.6 kB of the network's input as long as there is one."""
    plan = prepare(RunOptions((str(photos),), str(tmp_path / "out"), save=("overlay",), isolate=True))
    with Segmenter(FakeBackend(), workers=1, isolate=True) as segmenter:
        workers = segmenter.picture_workers(plan.outputs)
        assert workers is not None
        (item, *_) = plan.items
        picture = workers.prepare(item)
        assert picture.nbytes >= 24 * 36 * 3 + 32 * 48 * 3
        (seen,) = workers.infer([picture])
        assert seen.tensors == ()
        assert 24 * 36 * 3 + 32 * 48 <= seen.nbytes < 24 * 36 * 3 + 32 * 48 * 3
        plan.outputs.prepare()
        assert workers.finish(seen).sizes == ((tmp_path / "out/overlays/0.jpg").stat().st_size,)


SCRIPT = """
import sys, time
from tests.helpers.observers import observing
from unet_batch.inference.segmenter import Segmenter
from unet_batch.run.execute import execute
from unet_batch.run.options import RunOptions
from unet_batch.run.plan import prepare
from unet_batch.testing import FakeBackend

def outcome(item, failure):
    print(item.key, flush=True)
    time.sleep(0.1)

plan = prepare(RunOptions((sys.argv[1],), sys.argv[2], isolate=True))
with Segmenter(FakeBackend(batch_size=1), workers=2, isolate=True) as segmenter:
    execute(plan, segmenter, observing(outcome=outcome))
"""


def test_workers_end_with_a_run_that_is_killed_and_the_next_one_goes_on(photos: Path, tmp_path: Path) -> None:
    for number in range(6, 40):
        write(photos / f"{number}.png", half_bright())
    out = tmp_path / "out"
    command = [sys.executable, "-c", SCRIPT, str(photos), str(out)]
    with subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, cwd=ROOT
    ) as owner:
        assert owner.stdout is not None
        owner.stdout.readline()
        workers = psutil.Process(owner.pid).children()
        owner.kill()
    assert len(workers) == 2
    until(lambda: not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in workers))
    report = run(photos, out)
    assert (report.failed, report.left) == (0, 0)
    assert report.skipped + report.done > 0
    assert sorted(outputs(out)) == sorted(f"masks/{number}.png" for number in range(40))
