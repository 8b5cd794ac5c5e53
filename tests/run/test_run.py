"""`prepare` and `execute` with a model whose right answer is known: the brightness of each pixel."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from tests.helpers.missing import without
from tests.helpers.observers import observing
from tests.helpers.runs import files, half_bright, read, segment, write
from unet_batch.errors import BackendError, ManifestError, OutputError, SourceError, UsageError
from unet_batch.inference import segmenter as segmenter_module
from unet_batch.inference.segmenter import Segmenter
from unet_batch.media import images
from unet_batch.run import work as work_module
from unet_batch.run.execute import execute
from unet_batch.run.options import RunOptions
from unet_batch.run.plan import prepare
from unet_batch.testing import FakeBackend, fake_spec

pytestmark = pytest.mark.usefixtures("no_thread_is_left")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for name in ("a.png", "b.jpg", "sub/a.png", "sub/deep/c.png"):
        write(folder / name, half_bright())
    (folder / "notes.txt").write_text("not a picture")
    return folder


def test_masks_mirror_the_tree_and_lie_beside_the_source(photos: Path) -> None:
    report, heard = segment(photos)
    out = photos.parent / "photos-segmented"
    masks = ["masks/a.png", "masks/b.png", "masks/sub/a.png", "masks/sub/deep/c.png"]
    assert files(out) == ["manifest.jsonl", *masks, "run.json"]
    assert heard == ["a", "b", "sub/a", "sub/deep/c"]
    assert (report.status, report.exit_code, report.found, report.done) == ("done", 0, 4, 4)
    mask = read(out / "masks/a.png")
    assert mask.dtype == np.uint8
    assert np.array_equal(mask, half_bright()[:, :, 0])


def test_every_kind_of_output(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    segment(photos / "a.png", output=out, save=("mask", "overlay", "cutout", "prob"))
    assert files(out) == [
        "cutouts/a.png",
        "manifest.jsonl",
        "masks/a.png",
        "overlays/a.jpg",
        "probs/a.png",
        "run.json",
    ]
    overlay, cutout, prob = (read(out / name) for name in ("overlays/a.jpg", "cutouts/a.png", "probs/a.png"))
    assert overlay.shape == (64, 96, 3)
    assert overlay[32, 10].max() < 10, "the background is left alone"
    assert np.ptp(overlay[32, 80].astype(int)) > 60, "the class is tinted"
    assert cutout.shape == (64, 96, 4)
    assert cutout[32, 10].tolist() == [0, 0, 0, 0]
    assert cutout[32, 90].tolist() == [255, 255, 255, 255]
    assert prob[32, 10] == 0
    assert prob[32, 90] == 255


def test_prob16_has_sixteen_bits(photos: Path, tmp_path: Path) -> None:
    segment(photos / "a.png", output=tmp_path / "out", save=("prob16",))
    prob = read(tmp_path / "out/probs16/a.png")
    assert prob.dtype == np.uint16
    assert prob.max() == 65535


@pytest.mark.parametrize("orientation", range(1, 9))
def test_masks_are_as_a_person_sees_the_photo(tmp_path: Path, orientation: int) -> None:
    """The stored pixels differ, the picture on screen does not: nor does the mask."""
    upright = np.zeros((64, 96, 3), np.uint8)
    upright[:32, :48] = 255
    # What has to be stored so that a viewer that applies the orientation shows `upright`.
    undo: dict[int, Callable[[np.ndarray], np.ndarray]] = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: lambda a: np.rot90(a, 3),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    write(tmp_path / "photos/x.jpg", np.ascontiguousarray(undo[orientation](upright)), exif=exif, quality=95)
    segment(tmp_path / "photos", output=tmp_path / "out", save=("mask", "overlay"))
    mask = read(tmp_path / "out/masks/x.png")
    assert mask.shape == (64, 96)
    assert (mask == upright[:, :, 0]).mean() > 0.99
    assert read(tmp_path / "out/overlays/x.jpg").shape == (64, 96, 3)


def test_an_unreadable_file_is_named_and_the_rest_is_done(photos: Path, tmp_path: Path) -> None:
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not really")
    (photos / "empty.png").write_bytes(b"")
    out = tmp_path / "out"
    report, heard = segment(photos, output=out)
    assert (report.status, report.exit_code, report.done, report.failed) == ("failures", 1, 4, 2)
    assert len(heard) == 6
    lines = [json.loads(line) for line in (out / "errors.jsonl").read_text().splitlines()]
    assert {os.path.basename(line["path"]) for line in lines} == {"broken.jpg", "empty.png"}
    assert all(
        line["stage"] == "decode" and line["error"] == "ImageError" and line["message"] for line in lines
    )
    assert json.loads((out / "run.json").read_text())["failed"] == 2
    assert not (out / "masks/empty.png").exists()


def test_the_error_list_of_an_earlier_run_goes(photos: Path, tmp_path: Path) -> None:
    (photos / "empty.png").write_bytes(b"")
    out = tmp_path / "out"
    segment(photos, output=out)
    write(photos / "empty.png", half_bright())
    report, _ = segment(photos, output=out)
    assert (report.done, report.skipped, report.failed) == (1, 4, 0)
    assert not (out / "errors.jsonl").exists()


def test_existing_outputs_are_skipped_unless_overwritten(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    segment(photos, output=out)
    write(out / "masks/a.png", np.eye(64, 96, dtype=np.uint8))
    edit = (out / "masks/a.png").read_bytes()
    (out / "masks/b.png").unlink()
    report, heard = segment(photos, output=out)
    assert (report.done, report.skipped, heard) == (1, 3, ["b"])
    assert report.states == {"edited": 1, "lost": 1, "done": 2}
    assert (out / "masks/a.png").read_bytes() == edit
    report, _ = segment(photos, output=out, overwrite=True)
    assert (report.done, report.skipped) == (4, 0)
    assert read(out / "masks/a.png").shape == (64, 96)


def test_a_new_kind_of_output_is_not_mistaken_for_done(photos: Path, tmp_path: Path) -> None:
    segment(photos, output=tmp_path / "out")
    report, _ = segment(photos, output=tmp_path / "out", save=("mask", "overlay"))
    assert (report.done, report.skipped) == (4, 0)


def test_outputs_inside_the_source_are_never_read(photos: Path) -> None:
    out = photos / "results"
    segment(photos, output=out)
    report, _ = segment(photos, output=out)
    assert (report.found, report.skipped) == (4, 4)
    report, _ = segment(photos, output=photos.parent / "elsewhere")
    assert report.found == 4, "also when this run writes elsewhere"


def test_a_source_cannot_be_the_output(photos: Path) -> None:
    with pytest.raises(UsageError, match="is a source and cannot be the output folder as well") as caught:
        segment(photos, output=photos)
    assert caught.value.hint.endswith("photos-segmented")
    assert not (photos / "run.json").exists()


def test_equal_stems_keep_their_extension(tmp_path: Path) -> None:
    for name in ("x.png", "x.bmp", "y.png"):
        write(tmp_path / "photos" / name, half_bright())
    segment(tmp_path / "photos", output=tmp_path / "out")
    assert files(tmp_path / "out/masks") == ["x.bmp.png", "x.png.png", "y.png"]


def test_fail_fast_stops_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/000.png").write_bytes(b"")
    for index in range(1, 200):
        write(tmp_path / f"photos/{index:03}.png", half_bright(8, 12))
    report, _ = segment(tmp_path / "photos", output=tmp_path / "out", fail_fast=True)
    assert (report.status, report.exit_code, report.failed) == ("stopped", 1, 1)
    assert report.done < 100
    assert len(files(tmp_path / "out/masks")) == report.done, "what was in flight is finished and counted"


def test_a_full_disk_ends_the_run_at_once(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: str, data: bytes) -> None:
        raise OutputError(f"{path} cannot be written: the disk is full", hint="free some space")

    monkeypatch.setattr(work_module, "write_atomic", full)
    with pytest.raises(OutputError, match="disk is full"):
        segment(photos, output=tmp_path / "out")
    report = json.loads((tmp_path / "out/run.json").read_text())
    assert (report["status"], report["done"]) == ("aborted", 0)


def test_ctrl_c_leaves_whole_files_and_a_report(photos: Path, tmp_path: Path) -> None:
    plan = prepare(RunOptions((str(photos),), str(tmp_path / "out")))

    def interrupt(item: object, failure: object) -> None:
        raise KeyboardInterrupt

    with Segmenter(FakeBackend(), workers=1) as segmenter:
        report = execute(plan, segmenter, observing(outcome=interrupt))
    assert (report.status, report.exit_code) == ("interrupted", 130)
    for path in (tmp_path / "out/masks").rglob("*"):
        assert path.is_dir() or read(path).shape == (64, 96)
    resumed, _ = segment(photos, output=tmp_path / "out")
    assert resumed.done + resumed.skipped == 4


def test_a_picture_the_network_chokes_on_fails_alone(photos: Path, tmp_path: Path) -> None:
    write(photos / "sub/evil.png", np.full((64, 96, 3), 77, np.uint8))

    def answer(pictures: np.ndarray) -> np.ndarray:
        if (pictures == 77).all(axis=(1, 2, 3)).any():
            raise BackendError("fake: out of memory")
        return pictures[..., 0].copy()

    report, _ = segment(photos, output=tmp_path / "out", backend=FakeBackend(answer=answer))
    assert (report.done, report.failed) == (4, 1)
    assert report.failures[0].stage == "infer"
    assert report.failures[0].path.endswith("evil.png")


def test_a_broken_device_ends_the_run(tmp_path: Path) -> None:
    for index in range(40):
        write(tmp_path / f"photos/{index}.png", half_bright(8, 12))

    def answer(pictures: np.ndarray) -> np.ndarray:
        raise BackendError("fake: the device fell off the bus")

    with pytest.raises(BackendError, match="fell off the bus"):
        segment(tmp_path / "photos", output=tmp_path / "out", backend=FakeBackend(answer=answer))


def test_an_error_nobody_foresaw_is_one_items_own(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = segmenter_module.images.read

    def surprising(path: str, **options: Any) -> Any:
        if path.endswith("b.jpg"):
            raise ZeroDivisionError("surprise")
        return real(path, **options)

    monkeypatch.setattr(segmenter_module.images, "read", surprising)
    report, _ = segment(photos, output=tmp_path / "out")
    assert report.done == 3
    assert "ZeroDivisionError: surprise" in report.failures[0].message


@pytest.mark.usefixtures("one_core")
def test_memory_stays_flat(tmp_path: Path) -> None:
    """Five hundred pictures hold no more than 150 did; `scripts/bench_memory.py` does it with real ones."""
    write(tmp_path / "photo.png", half_bright(300, 400))
    (tmp_path / "photos").mkdir()
    for index in range(500):
        (tmp_path / f"photos/{index}.png").symlink_to(tmp_path / "photo.png")
    plan = prepare(RunOptions((str(tmp_path / "photos"),), str(tmp_path / "out"), ("mask", "overlay")))
    process, resident = psutil.Process(), []
    with Segmenter(FakeBackend(), workers=2) as segmenter:
        observer = observing(outcome=lambda item, failure: resident.append(process.memory_info().rss))
        report = execute(plan, segmenter, observer)
    assert report.done == 500
    assert max(resident[150:]) - resident[149] < 15e6  # a leak of one picture each would be 126 MB


def test_several_classes_write_ids(photos: Path, tmp_path: Path) -> None:
    backend = FakeBackend(
        fake_spec(classes=3), answer=lambda pictures: (pictures[..., 0] // 100).astype(np.uint8)
    )
    segment(photos / "a.png", output=tmp_path / "out", backend=backend, save=("mask", "overlay"))
    assert set(np.unique(read(tmp_path / "out/masks/a.png"))) == {0, 2}


def test_ids_have_no_probability(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has 3 classes: ids"):
        segment(photos, output=tmp_path / "out", backend=FakeBackend(fake_spec(classes=3)), save=("prob",))
    assert not (tmp_path / "out").exists(), "found out before anything was written"


def test_the_report_adds_up(photos: Path, tmp_path: Path) -> None:
    report, _ = segment(photos, output=tmp_path / "out")
    on_disk = json.loads((tmp_path / "out/run.json").read_text())
    assert next(iter(on_disk)) == "unet_batch"
    assert on_disk["status"] == "done"
    assert [stage["name"] for stage in on_disk["stages"]] == ["source", "decode", "infer", "render", "write"]
    assert all(stage["items"] == 4 for stage in on_disk["stages"])
    assert on_disk["bottleneck"] in ("source", "decode", "infer", "render", "write")
    assert on_disk["images_per_second"] == pytest.approx(4 / report.seconds)
    assert {"torch", "numpy", "python"} <= set(on_disk["versions"])
    assert on_disk["backend"]["reason"]


def test_prepare_writes_nothing(photos: Path) -> None:
    before = files(photos.parent)
    plan = prepare(RunOptions((str(photos),)))
    assert len(plan.todo) == 4
    assert files(photos.parent) == before


def test_a_file_in_the_way_of_the_output(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OutputError, match="in the way"):
        segment(photos, output=tmp_path / "out")


def test_nothing_to_segment(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(SourceError, match=r"0 pictures; 1 \.txt"):
        segment(tmp_path)


def test_nothing_to_save(photos: Path) -> None:
    with pytest.raises(UsageError, match="nothing to save"):
        segment(photos, save=())
    with pytest.raises(UsageError, match="--save polygons: none of it can be made of a picture"):
        segment(photos, save=("polygons",))


def test_every_odd_file_ends_as_a_mask_or_a_named_error(data: Path, tmp_path: Path) -> None:
    """What each of them becomes stands in the table of `test_decode.py`; here the whole folder goes through a
    run.
    """
    odd = sorted(path for path in (data / "awkward").iterdir() if path.name != "LIST.tsv")
    listing = tmp_path / "list.txt"
    listing.write_text("\n".join(map(str, odd)))
    out = tmp_path / "out"
    plan = prepare(RunOptions((f"@{listing}",), str(out), ("mask", "overlay", "cutout", "prob16")))
    with Segmenter(FakeBackend(), workers=2) as segmenter:
        report = execute(plan, segmenter)
    assert report.found == report.done + report.failed == len(odd)
    failed = {failure.path: failure for failure in report.failures}
    assert all(
        failure.stage == "decode" and failure.message.startswith(path) for path, failure in failed.items()
    )
    for item in plan.todo:
        written = [Path(plan.outputs.path(kind, item.key)) for kind in plan.options.save]
        if item.path in failed:
            assert not any(path.exists() for path in written)
        else:
            size = images.read(item.path).size
            assert all(read(path).shape[:2] == size for path in written)


def test_a_write_error_is_translated(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real writer, with a disk that is full at the moment of the rename."""

    def replace(source: str, target: str) -> None:
        if target.endswith("b.png"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.rename(source, target)

    from unet_batch.files import atomic

    monkeypatch.setattr(atomic.os, "replace", replace)
    with pytest.raises(OutputError, match="the disk is full"):
        segment(photos, output=tmp_path / "out")
    assert not [name for name in files(tmp_path / "out") if name.endswith(".part")]


# Where results go


def test_results_of_files_lie_below_the_current_folder(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos)
    before = files(photos.parent)
    for named in ("a.png", "*.jpg", ".", "sub ."):
        segment(*map(Path, named.split()))
    made = set(files(photos.parent)) - set(before)
    assert made == {
        f"photos/segmented/{name}"
        for name in (
            "manifest.jsonl",
            "run.json",
            *(f"masks/{key}.png" for key in ("a", "b", "sub/a", "sub/deep/c")),
        )
    }


def test_what_an_earlier_release_has_begun_elsewhere_goes_on_there(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0.2.0 put the results of `run .` beside the folder."""
    monkeypatch.chdir(photos)
    before = photos.parent / "photos-segmented"
    segment(Path("."), output=before)
    (before / "masks/a.png").unlink()
    report, heard = segment(Path("."))
    assert (report.output, report.skipped, heard) == (str(before), 3, ["a"])
    [note] = report.notes
    assert (
        note
        == f"goes on in {before}, which holds results of this folder; -o {photos / 'segmented'} begins anew"
    )
    assert not (photos / "segmented").exists()
    # Whoever has begun anew goes on with that.
    segment(Path("."), output=photos / "segmented")
    report, _ = segment(Path("."))
    assert (report.output, report.skipped, report.notes) == (str(photos / "segmented"), 4, ())


def test_a_folder_of_that_name_beside_is_left_alone(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody's own, or of another program: no manifest."""
    monkeypatch.chdir(photos)
    (photos.parent / "photos-segmented").mkdir()
    assert segment(Path("."))[0].output == str(photos / "segmented")


def test_pictures_that_lie_where_results_would_go(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos)
    write(photos / "segmented/own.png", half_bright())
    with pytest.raises(UsageError, match="is a source and cannot be the output folder") as caught:
        segment(Path("."))
    assert "-o" in caught.value.hint
    segment(Path("a.png"))
    assert (photos / "segmented/masks/a.png").exists()


def test_sources_with_nothing_in_common(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys without the path from the top; a picture of the same name from elsewhere is still told apart."""
    monkeypatch.setattr("unet_batch.files.sources.os.path.commonpath", lambda paths: os.sep)
    for folder in ("one/pics", "two/pics"):
        write(tmp_path / folder / "x.png", half_bright())
    out = tmp_path / "out"
    segment(photos / "sub", tmp_path / "one/pics", output=out)
    assert files(out / "masks") == ["pics/x.png", "sub/a.png", "sub/deep/c.png"]
    report, _ = segment(photos / "sub", tmp_path / "one/pics", output=out)
    assert report.skipped == 3
    with pytest.raises(ManifestError, match="outputs of 1 other pictures of the same names"):
        segment(photos / "sub", tmp_path / "two/pics", output=out)


@pytest.mark.parametrize("name", ["result.png", "sub/result.JPG", "result.tif", "clip.mp4", "clip.mov"])
def test_the_name_of_a_file_is_no_output_folder(photos: Path, name: str) -> None:
    with pytest.raises(UsageError, match="called like a file, and results go into a folder") as caught:
        segment(photos / "a.png", output=photos.parent / name)
    stem = str(photos.parent / os.path.splitext(name)[0])
    assert caught.value.hint == f"name a folder, for example -o {stem}: masks are then in {stem}/masks"
    assert not (photos.parent / name).exists()


def test_a_folder_may_be_called_like_a_file(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "old.png").mkdir()
    segment(photos, output=tmp_path / "old.png")
    plan = prepare(RunOptions((str(photos),), f"{tmp_path / 'new.png'}{os.sep}"))
    assert plan.outputs.folder == str(tmp_path / "new.png")
    for fine in ("out", "shoot.2024.05", "v1.0"):
        prepare(RunOptions((str(photos),), str(tmp_path / fine)))


def test_a_file_in_the_way_is_found_before_a_model_is_loaded(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(b"")
    for output in (tmp_path / "photo.png", photos / "a.png", photos / "notes.txt"):
        with pytest.raises(OutputError, match="is in the way: it is not a folder"):
            prepare(RunOptions((str(photos / "b.jpg"),), str(output)))


def test_an_output_folder_without_a_name(photos: Path) -> None:
    with pytest.raises(UsageError, match="the output folder has an empty name"):
        prepare(RunOptions((str(photos),), ""))


def test_a_picture_never_takes_the_mask_of_its_namesake(photos: Path, tmp_path: Path) -> None:
    """Each run sees one of them, and so neither keeps its extension."""
    out = tmp_path / "out"
    segment(photos / "a.png", output=out)
    write(photos / "a.jpg", half_bright(32, 48))
    with pytest.raises(ManifestError, match="outputs of 1 other pictures of the same names"):
        segment(photos / "a.jpg", output=out)
    assert read(out / "masks/a.png").shape == (64, 96)
    (photos / "a.png").unlink()  # converted, and so replaced
    report, _ = segment(photos / "a.jpg", output=out)
    assert (report.done, read(out / "masks/a.png").shape) == (1, (32, 48))


NEEDS_NO_FFMPEG = """
import sys
from tests.helpers.runs import segment
from pathlib import Path
from unet_batch.errors import RunError
photos, out, clip = map(Path, sys.argv[1:])
report, _ = segment(photos, output=out, save=("mask", "overlay"))
assert (report.done, report.failed) == (4, 0), report.failures
try:
    segment(photos, clip, output=out / "both")
except RunError as error:
    print(error.message, error.hint, sep="\\n")
"""


def test_photos_need_neither_pyav_nor_imagecodecs_and_a_clip_says_that_it_does(
    photos: Path, tmp_path: Path
) -> None:
    """Codecs of video and TIFF are large, and not everywhere; a JPEG of ours has the profile of sRGB."""
    out, clip = tmp_path / "out", tmp_path / "clip.mp4"
    (photos / "b.jpg").write_bytes(images.encode_jpeg(half_bright(), 90))
    clip.write_bytes(b"\0\0\0\x18ftypisom")
    done = without(("av", "imagecodecs", "tifffile"), NEEDS_NO_FFMPEG, *map(str, (photos, out, clip)))
    assert done.returncode == 0, done.stderr[-800:]
    assert done.stdout.splitlines() == [
        "no clip can be read or written: PyAV does not load (No module named 'av')",
        "pip install av; or leave the clips out",
    ]
    assert not (out / "both" / "masks").exists()  # told before the photos, not in the morning
