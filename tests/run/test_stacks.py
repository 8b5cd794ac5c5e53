"""Pictures of several pages: their masks are those of the same pixels given one by one, in a stack alike."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.helpers.processes import Forked
from tests.helpers.runs import files, read, segment, segment_folder, write
from tests.helpers.systems import needs_posix
from unet_batch.errors import ManifestError, UsageError
from unet_batch.inference.segmenter import Segmenter
from unet_batch.inference.views import ViewOptions
from unet_batch.run.execute import execute
from unet_batch.run.observe import Stop
from unet_batch.run.options import PageRange, RunOptions
from unet_batch.run.plan import prepare
from unet_batch.testing import FakeBackend, fake_spec

pytestmark = pytest.mark.usefixtures("no_thread_is_left")
ALL = PageRange()


def noise(*shape: int, kind: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(len(shape)).integers(0, np.iinfo(kind).max, shape, kind)


def save(path: Path, pages: np.ndarray) -> None:
    tifffile.imwrite(path, pages, photometric="minisblack")


def masks_one_by_one(pages: np.ndarray, folder: Path, **options: Any) -> np.ndarray:
    """The masks of pages (n, h, w) or (n, h, w, 3), each given as a PNG."""
    for number, page in enumerate(pages):
        write(folder / "single" / f"{number:03}.png", page)
    segment(folder / "single", output=folder / "singles", **options)
    return np.stack([read(path) for path in sorted((folder / "singles" / "masks").iterdir())])


class TestPageRange:
    @pytest.mark.parametrize(
        ("text", "count", "expected"),
        [
            ("all", 5, [0, 1, 2, 3, 4]),
            ("3", 5, [2]),
            ("2:4", 5, [1, 2, 3]),
            ("4:", 5, [3, 4]),
            (":2", 5, [0, 1]),
            ("4:9", 5, [3, 4]),
            ("7", 5, []),
        ],
    )
    def test_says_which(self, text: str, count: int, expected: list[int]) -> None:
        assert list(PageRange.parse(text).of(count)) == expected
        assert PageRange.parse(str(PageRange.parse(text))) == PageRange.parse(text)

    @pytest.mark.parametrize("text", ["", ":", "0", "3:2", "-1", "a", "1:2:3", "1,2"])
    def test_all_else_is_refused(self, text: str) -> None:
        with pytest.raises(UsageError, match="counted from 1"):
            PageRange.parse(text)


class TestStacks:
    @pytest.mark.parametrize("kind", [np.uint8, np.uint16])
    @pytest.mark.parametrize("how", ["plain", "imagej", "ome", "colour"])
    def test_the_same_masks_as_one_by_one(self, tmp_path: Path, how: str, kind: type) -> None:
        pages = noise(7, 30, 41, 3, kind=kind) if how == "colour" else noise(7, 30, 41, kind=kind)
        if how == "colour" and kind is np.uint16:
            pytest.skip("PNG in colour is cut to 8 bits, TIFF is rounded")
        path = tmp_path / "stack.tif"
        if how in ("plain", "colour"):
            with tifffile.TiffWriter(path) as file:
                for page in pages:
                    file.write(page, metadata=None, compression="zlib")
        else:
            tifffile.imwrite(path, pages, imagej=how == "imagej", ome=how == "ome", metadata={"axes": "ZYX"})
        report, _ = segment(path, output=tmp_path / "out", pages=ALL)
        assert (report.done, report.failed) == (1, 0)
        assert files(tmp_path / "out" / "masks") == ["stack.tif"]
        found = tifffile.imread(tmp_path / "out" / "masks" / "stack.tif")
        np.testing.assert_array_equal(found, masks_one_by_one(pages, tmp_path))

    def test_a_hyperstack_keeps_its_axes(self, tmp_path: Path) -> None:
        stack = noise(2, 3, 2, 32, 48)
        tifffile.imwrite(tmp_path / "a.ome.tif", stack, metadata={"axes": "TZCYX"})
        tifffile.imwrite(tmp_path / "b.tif", stack, imagej=True, metadata={"axes": "TZCYX"})
        segment(tmp_path, output=tmp_path / "out", pages=ALL)
        for name in ("a.ome.tif", "b.tif"):
            with tifffile.TiffFile(tmp_path / "out" / "masks" / name) as file:
                assert file.series[0].axes == "TZCYX"
                assert file.series[0].shape == stack.shape
                np.testing.assert_array_equal(file.asarray(), np.where(stack >= 128, 255, 0))

    def test_a_stack_of_one_directory(self, tmp_path: Path) -> None:
        stack = noise(5, 32, 48)
        with tifffile.TiffWriter(tmp_path / "a.tif") as file:  # as ImageJ does it beyond 4 GB
            file.write(stack[0], metadata=None, description="ImageJ=1.54f\nimages=5\nslices=5\n")
        with tifffile.TiffFile(tmp_path / "a.tif") as made:
            begin = made.pages[0].dataoffsets[0]
        assert begin + stack[0].nbytes == os.path.getsize(tmp_path / "a.tif")
        with open(tmp_path / "a.tif", "r+b") as raw:
            raw.seek(begin)
            raw.write(stack.tobytes())
        segment(tmp_path / "a.tif", output=tmp_path / "out", pages=ALL)
        found = tifffile.imread(tmp_path / "out" / "masks" / "a.tif")
        np.testing.assert_array_equal(found, np.where(stack >= 128, 255, 0))

    @pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
    def test_frames_of_an_animation(self, tmp_path: Path, suffix: str) -> None:
        frames = [np.full((20, 30, 3), level, np.uint8) for level in (0, 250, 10, 240)]
        first, *rest = map(Image.fromarray, frames)
        first.save(tmp_path / f"a.{suffix}", save_all=True, append_images=rest, duration=50, lossless=True)
        segment(tmp_path / f"a.{suffix}", output=tmp_path / "out", pages=ALL)
        found = tifffile.imread(tmp_path / "out" / "masks" / "a.tif")
        assert [page.mean() for page in found] == [0, 255, 0, 255]

    def test_some_pages(self, tmp_path: Path) -> None:
        stack = noise(6, 32, 48)
        tifffile.imwrite(tmp_path / "a.tif", stack, imagej=True)
        segment(tmp_path / "a.tif", output=tmp_path / "out", pages=PageRange(2, 4))
        found = tifffile.imread(tmp_path / "out" / "masks" / "a.tif")
        np.testing.assert_array_equal(found, np.where(stack[1:4] >= 128, 255, 0))

    def test_pages_of_several_sizes_and_every_kind_of_output(self, tmp_path: Path) -> None:
        pages = [noise(20, 30), noise(40, 25)]
        with tifffile.TiffWriter(tmp_path / "a.tif") as file:
            for page in pages:
                file.write(page, metadata=None, resolution=(300, 300), resolutionunit="INCH")
        kinds = ("mask", "overlay", "cutout", "prob", "prob16")
        segment(tmp_path / "a.tif", output=tmp_path / "out", pages=ALL, save=kinds)
        shapes = {}
        for folder in ("masks", "overlays", "cutouts", "probs", "probs16"):
            with tifffile.TiffFile(tmp_path / "out" / folder / "a.tif") as file:
                shapes[folder] = [page.shape for page in file.pages]
                assert file.pages[0].tags["XResolution"].value == (300, 1)
        assert shapes == {
            "masks": [(20, 30), (40, 25)],
            "overlays": [(20, 30, 3), (40, 25, 3)],
            "cutouts": [(20, 30, 4), (40, 25, 4)],
            "probs": [(20, 30), (40, 25)],
            "probs16": [(20, 30), (40, 25)],
        }

    def test_reduced_copies_are_no_pages(self, tmp_path: Path) -> None:
        large = noise(64, 64)
        with tifffile.TiffWriter(tmp_path / "a.tif") as file:
            file.write(large, metadata=None)
            file.write(large[::8, ::8], metadata=None, subfiletype=1)
        segment(tmp_path / "a.tif", output=tmp_path / "out", pages=ALL)
        assert files(tmp_path / "out" / "masks") == ["a.png"]

    def test_beside_other_pictures_in_tiles_and_of_classes(self, tmp_path: Path) -> None:
        stack = noise(3, 50, 70)
        write(tmp_path / "in" / "photo.png", noise(20, 30, 3))
        save(tmp_path / "in" / "stack.tif", stack)
        (tmp_path / "in" / "broken.tif").write_bytes(b"II*\0no picture")
        backend = FakeBackend(fake_spec(classes=4), lambda batch: np.asarray(batch[..., 0] // 64))
        report, _ = segment(
            tmp_path / "in", output=tmp_path / "out", backend=backend, view=ViewOptions("tile"), pages=ALL
        )
        assert (report.done, report.failed) == (2, 1)
        assert files(tmp_path / "out" / "masks") == ["photo.png", "stack.tif"]
        found = tifffile.imread(tmp_path / "out" / "masks" / "stack.tif")
        np.testing.assert_array_equal(found, stack // 64)


class TestRuns:
    def test_a_second_run_finds_it_done(self, tmp_path: Path) -> None:
        save(tmp_path / "a.tif", noise(4, 20, 30))
        segment(tmp_path / "a.tif", output=tmp_path / "out", pages=ALL)
        before = (tmp_path / "out" / "masks" / "a.tif").read_bytes()
        again, heard = segment(tmp_path / "a.tif", output=tmp_path / "out", pages=ALL)
        assert (again.states, heard) == ({"done": 1}, [])
        segment(tmp_path / "a.tif", output=tmp_path / "other", pages=ALL)
        assert (tmp_path / "other" / "masks" / "a.tif").read_bytes() == before

    def test_pages_are_part_of_the_recipe(self, tmp_path: Path) -> None:
        save(tmp_path / "a.tif", noise(4, 20, 30))
        segment(tmp_path / "a.tif", output=tmp_path / "out", pages=ALL)
        with pytest.raises(ManifestError, match="pages all"):
            segment(tmp_path / "a.tif", output=tmp_path / "out")

    def test_without_pages_the_first_is_read_and_told(self, tmp_path: Path) -> None:
        save(tmp_path / "a.tif", noise(4, 20, 30))
        report, _ = segment(tmp_path / "a.tif", output=tmp_path / "out")
        assert report.file_notes
        assert files(tmp_path / "out" / "masks") == ["a.png"]

    def test_a_damaged_page_costs_the_picture_and_leaves_nothing(self, tmp_path: Path) -> None:
        path = tmp_path / "a.tif"
        with tifffile.TiffWriter(path) as file:
            for page in noise(4, 20, 30):
                file.write(page, metadata=None)
        with tifffile.TiffFile(path) as file:
            entry = file.pages[2].tags["StripOffsets"]
        with open(path, "r+b") as raw:
            raw.seek(entry.valueoffset if entry.count > 1 else entry.offset + 8)
            raw.write((1 << 30).to_bytes(4, "little"))
        report, _ = segment(path, output=tmp_path / "out", pages=ALL)
        [failure] = report.failures
        assert failure.stage == "decode"
        assert "early" in failure.message
        assert files(tmp_path / "out" / "masks") == []

    def test_a_page_that_is_not_there(self, tmp_path: Path) -> None:
        save(tmp_path / "a.tif", noise(4, 20, 30))
        report, _ = segment(tmp_path / "a.tif", output=tmp_path / "out", pages=PageRange(9, 9))
        assert "has 4 pages, none of those" in report.failures[0].message

    def test_stopped_within_a_stack_nothing_of_it_is_left(self, tmp_path: Path) -> None:
        save(tmp_path / "a.tif", noise(90, 20, 30))
        stop, seen = Stop(), []

        def answer(batch: np.ndarray) -> np.ndarray:
            seen.append(len(batch))
            if len(seen) == 3:
                stop()
            return np.zeros(batch.shape[:3], np.uint8)

        plan = prepare(RunOptions((str(tmp_path / "a.tif"),), str(tmp_path / "out"), pages=ALL))
        with Segmenter(FakeBackend(answer=answer, batch_size=2), workers=1) as segmenter:
            report = execute(plan, segmenter, stop=stop)
        assert report.status == "interrupted"
        assert [path for path in files(tmp_path / "out") if path.startswith("masks")] == []
        assert segment(tmp_path / "a.tif", output=tmp_path / "out", pages=ALL)[0].done == 1

    @needs_posix
    @pytest.mark.parametrize("delay", [0.02, 0.1, 0.3])
    def test_killed_it_begins_anew_and_ends_the_same(self, tmp_path: Path, delay: float) -> None:
        save(tmp_path / "a.tif", noise(300, 40, 60))
        segment(tmp_path / "a.tif", output=tmp_path / "whole", pages=ALL)
        child = Forked(segment_folder, str(tmp_path / "a.tif"), str(tmp_path / "out"), {"pages": ALL})
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
        child.wait()
        segment(tmp_path / "a.tif", output=tmp_path / "out", pages=ALL)
        masks = [(tmp_path / out / "masks" / "a.tif").read_bytes() for out in ("whole", "out")]
        assert masks[0] == masks[1]
        assert files(tmp_path / "out" / "masks") == ["a.tif"]
