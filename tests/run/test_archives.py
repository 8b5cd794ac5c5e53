"""Runs over archives: the same masks as of the same files in a folder, resumed, isolated, damaged."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.runs import files, segment, write
from unet_batch.errors import ManifestError, SourceError
from unet_batch.inference.segmenter import Segmenter
from unet_batch.run.execute import execute
from unet_batch.run.merge import merge
from unet_batch.run.options import RunOptions
from unet_batch.run.plan import prepare
from unet_batch.run.shard import Shard
from unet_batch.testing import FakeBackend

pytestmark = pytest.mark.usefixtures("no_thread_is_left")


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (24, 36, 3), np.uint8)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for number in range(5):
        write(folder / "sub" / f"{number}.png", noise(number))
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(params=["zip", "tar"])
def archive(request: pytest.FixtureRequest, photos: Path) -> Path:
    return pack(photos, request.param)


def pack(photos: Path, kind: str) -> Path:
    path = photos.with_suffix(f".{kind}")
    paths = sorted(path for path in photos.rglob("*") if path.is_file())
    if kind == "tar":
        with tarfile.open(path, "w") as tar:
            for file in paths:
                tar.add(file, file.relative_to(photos))
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
            for file in paths:
                packed.write(file, file.relative_to(photos))
    return path


def masks(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("*.png"))}


def test_the_same_masks_as_of_a_folder(photos: Path, archive: Path, tmp_path: Path) -> None:
    plain, _ = segment(photos, output=tmp_path / "plain")
    packed, _ = segment(archive, output=tmp_path / "packed")
    assert (packed.done, packed.failed) == (plain.done, plain.failed) == (5, 1)
    assert masks(tmp_path / "packed") == masks(tmp_path / "plain")
    [failure] = packed.failures
    assert failure.path == str(archive / "broken.png")
    assert failure.message.startswith(f"{archive}/broken.png: ")


def test_a_second_run_finds_it_done_and_a_changed_file_is_made_anew(
    photos: Path, archive: Path, tmp_path: Path
) -> None:
    segment(archive, output=tmp_path / "out")
    assert segment(archive, output=tmp_path / "out")[0].states == {"done": 5, "failed": 1}
    write(photos / "sub" / "3.png", noise(30))
    pack(photos, archive.suffix[1:])
    again, heard = segment(archive, output=tmp_path / "out")
    assert again.states == {"done": 4, "changed": 1, "failed": 1}
    assert sorted(heard) == ["broken", "sub/3"]


def test_another_archive_of_the_same_names_is_not_mixed_in(
    photos: Path, archive: Path, tmp_path: Path
) -> None:
    segment(archive, output=tmp_path / "out")
    before = masks(tmp_path / "out")
    for number in range(5):
        write(photos / "sub" / f"{number}.png", noise(50 + number))
    other = pack(photos, archive.suffix[1:]).rename(tmp_path / f"other{archive.suffix}")
    pack_again = pack(photos, archive.suffix[1:])
    assert pack_again == archive
    with pytest.raises(ManifestError, match=r"5 other pictures of the same names, from .*photos"):
        segment(other, output=tmp_path / "out")
    assert masks(tmp_path / "out") == before


def test_shards_of_an_archive_are_joined_with_their_failures(archive: Path, tmp_path: Path) -> None:
    for number in (1, 2):
        segment(archive, output=tmp_path / "out", shard=Shard.parse(f"{number}/2", {}))
    report = merge(str(tmp_path / "out"))
    assert [failure.path for failure in report.failures] == [str(archive / "broken.png")]


def test_in_worker_processes(archive: Path, tmp_path: Path) -> None:
    segment(archive, output=tmp_path / "plain")
    plan = prepare(RunOptions((str(archive),), str(tmp_path / "isolated"), isolate=True))
    with Segmenter(FakeBackend(), workers=2, isolate=True) as segmenter:
        report = execute(plan, segmenter)
    assert (report.done, report.failed) == (5, 1)
    assert masks(tmp_path / "isolated") == masks(tmp_path / "plain")


def test_clips_in_it_are_counted_as_left_out(photos: Path, tmp_path: Path) -> None:
    (photos / "clip.mp4").write_bytes(b"x")
    plan = prepare(RunOptions((str(pack(photos, "zip")),), str(tmp_path / "out")))
    assert plan.sources.ignored == {".mp4": 1}


def test_an_archive_that_vanishes_ends_the_run(tmp_path: Path) -> None:
    for number in range(60):
        write(tmp_path / "photos" / f"{number:02}.png", noise(number))
    archive = pack(tmp_path / "photos", "tar")

    def pull(pictures: np.ndarray) -> np.ndarray:
        archive.unlink(missing_ok=True)
        return np.zeros(pictures.shape[:3], np.uint8)

    plan = prepare(RunOptions((str(archive),), str(tmp_path / "out")))
    with (
        Segmenter(FakeBackend(answer=pull), workers=1) as segmenter,
        pytest.raises(SourceError, match=r"photos\.tar vanished"),
    ):
        execute(plan, segmenter)


def test_without_o_results_lie_beside_it(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    segment(archive)
    assert "masks/sub/0.png" in files(tmp_path / "photos-segmented")
