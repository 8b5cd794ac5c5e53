"""OME-Zarr: one picture however many files, its planes as pages, its rows in bands, resumed and watched."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from tests.helpers.formats import grey
from tests.helpers.runs import files, kill_and_resume, read, segment, write
from tests.helpers.systems import needs_posix
from unet_batch.errors import ImageError, ImageTooLarge
from unet_batch.files import archives, stores
from unet_batch.files.sources import collect
from unet_batch.inference.views import ViewOptions
from unet_batch.media import images
from unet_batch.media.images import ome_zarr
from unet_batch.run import giant
from unet_batch.run.options import PageRange
from unet_batch.run.records import sha256_of
from unet_batch.testing import FakeBackend, fake_spec

zarr = pytest.importorskip("zarr", reason="zarr is not installed: pip install 'unet-batch[zarr]'")
if not hasattr(zarr, "create_array"):
    pytest.skip("these are written by zarr 3", allow_module_level=True)

ALL = PageRange()


@pytest.fixture(scope="module", autouse=True)
def threads_of_zarr(tmp_path_factory: pytest.TempPathFactory) -> None:
    """They stay for as long as the process: once for all, and not a test's own."""
    save(tmp_path_factory.mktemp("zarr") / "a.zarr", noise(40, 40), chunks=(4, 4))


def noise(*shape: int, kind: Any = np.uint8) -> np.ndarray:
    return np.random.default_rng(len(shape)).integers(0, np.iinfo(kind).max, shape, kind)


def save(
    path: Path, values: np.ndarray, axes: str = "", chunks: tuple[int, ...] = (), version: str = "0.4"
) -> str:
    """Write a picture and a level of half its size."""
    axes = axes or {2: "yx", 3: "cyx", 5: "tczyx"}[values.ndim]
    group = zarr.open_group(path, mode="w", zarr_format=3 if version == "0.5" else 2)
    for level, data in enumerate((values, values[..., ::2, ::2])):
        group.create_array(
            str(level),
            data=data,
            chunks=chunks or (1,) * (values.ndim - 2) + (16, 16),
            chunk_key_encoding=None if version == "0.5" else {"name": "v2", "separator": "/"},
        )
    named: list[Any] = list(axes) if version == "0.3" else [{"name": axis} for axis in axes]
    about = {"multiscales": [{"axes": named, "datasets": [{"path": "0"}, {"path": "1"}]}]}
    group.attrs.update({"ome": {"version": "0.5", **about}} if version == "0.5" else about)
    return os.fspath(path)


class TestWhatItShows:
    @pytest.mark.parametrize("version", ["0.3", "0.4", "0.5"])
    @pytest.mark.parametrize("kind", [np.uint8, np.uint16])
    def test_the_full_resolution(self, tmp_path: Path, version: str, kind: Any) -> None:
        values = noise(40, 30, kind=kind)
        picture = images.read(save(tmp_path / "a.zarr", values, version=version))
        full = np.iinfo(kind).max
        np.testing.assert_array_equal(picture.pixels, grey(np.rint(values * (255 / full))))
        assert picture.notes == ()

    @pytest.mark.parametrize(
        ("channels", "taken", "note"),
        [
            (1, [0, 0, 0], ()),
            (2, [0, 0, 0], ("2 channels: the first is read",)),
            (3, [0, 1, 2], ()),
            (5, [0, 1, 2], ("5 channels: the first three are read as red, green and blue",)),
        ],
    )
    def test_channels(self, tmp_path: Path, channels: int, taken: list[int], note: tuple[str, ...]) -> None:
        values = noise(channels, 20, 30)
        picture = images.read(save(tmp_path / "a.zarr", values))
        np.testing.assert_array_equal(picture.pixels, np.moveaxis(values[taken], 0, -1))
        assert picture.notes == note

    def test_floats_without_a_value(self, tmp_path: Path) -> None:
        values = np.linspace(0, 9, 600).reshape(20, 30).astype(np.float32)
        values[:5] = np.nan
        picture = images.read(save(tmp_path / "a.zarr", values))
        assert picture.missing is not None
        np.testing.assert_array_equal(picture.missing, np.isnan(values))
        assert (picture.pixels[0, 0, 0], picture.pixels[-1, -1, 0]) == (0, 255)

    def test_chunks_that_are_absent_hold_the_fill_value(self, tmp_path: Path) -> None:
        path = save(tmp_path / "a.zarr", noise(32, 32))
        os.remove(tmp_path / "a.zarr" / "0" / "1" / "0")
        assert (images.read(path).pixels[16:, :16] == 0).all()

    @pytest.mark.parametrize("how", [{"compressors": None}, {"shards": (32, 32)}])
    def test_chunks_that_are_not_packed_and_chunks_in_shards(self, tmp_path: Path, how: Any) -> None:
        path, values = save(tmp_path / "a.zarr", noise(40, 30), version="0.5"), noise(41, 31)
        group = zarr.open_group(path, mode="a")
        group.create_array("0", data=values, chunks=(16, 16), overwrite=True, **how)
        np.testing.assert_array_equal(images.read(path).pixels, grey(values))

    def test_the_first_of_several_series(self, tmp_path: Path) -> None:
        zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2).attrs["bioformats2raw.layout"] = 3
        for number in range(2):
            save(tmp_path / "a.zarr" / str(number), noise(20, 30) // (1 + number))
        picture = images.read(str(tmp_path / "a.zarr"))
        np.testing.assert_array_equal(picture.pixels, grey(noise(20, 30)))
        assert picture.notes == ("2 series: the first is read",)

    def test_its_labels_are_ids(self, tmp_path: Path) -> None:
        values = noise(20, 30, kind=np.uint16) % 900
        stored = images.read_ids(save(tmp_path / "a.zarr", values))
        np.testing.assert_array_equal(stored.values, values)


class TestWhatIsNotRead:
    def test_a_plate(self, tmp_path: Path) -> None:
        zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2).attrs["plate"] = {"wells": []}
        with pytest.raises(ImageError, match="holds a plate of wells"):
            images.read(str(tmp_path / "a.zarr"))

    def test_arrays_that_nobody_calls_a_picture(self, tmp_path: Path) -> None:
        zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2)
        with pytest.raises(ImageError, match=r"nothing that OME-Zarr calls a picture \(multiscales\)"):
            images.read(str(tmp_path / "a.zarr"))

    @pytest.mark.parametrize(
        "wrong",
        [
            {"axes": [{"name": "x"}, {"name": "y"}], "datasets": [{"path": "0"}]},
            {"axes": ["y", "x"], "datasets": [{"path": "none"}]},
            {"axes": ["y"], "datasets": [{"path": "0"}]},
            {"axes": ["y", "x"], "datasets": []},
            {"axes": [3, 4], "datasets": [{"path": "0"}]},
            "text",
        ],
    )
    def test_metadata_that_make_no_sense(self, tmp_path: Path, wrong: Any) -> None:
        path = save(tmp_path / "a.zarr", noise(20, 30))
        zarr.open_group(path, mode="a").attrs["multiscales"] = [wrong]
        with pytest.raises(ImageError, match=r"cannot decode this OME-Zarr: its (metadata|axes)"):
            images.read(path)

    @pytest.mark.parametrize("keep", [0, 40, -1])
    def test_a_chunk_that_is_cut_short(self, tmp_path: Path, keep: int) -> None:
        path = save(tmp_path / "a.zarr", noise(32, 32))
        chunk = tmp_path / "a.zarr" / "0" / "1" / "0"
        chunk.write_bytes(chunk.read_bytes()[:keep])
        with pytest.raises(ImageError, match=r"cannot decode this OME-Zarr: its (chunk 1/0 is|data are)"):
            images.read(path)

    def test_limits_hold_before_anything_is_read(self, tmp_path: Path) -> None:
        path = save(tmp_path / "a.zarr", noise(20, 30))
        assert images.read(path, max_pixels=600).size == (20, 30)
        with pytest.raises(ImageTooLarge, match="the limit is 599") as caught:
            images.read(path, max_pixels=599)
        assert "--fit tile" in caught.value.hint
        save(tmp_path / "b.zarr", noise(20, 30), chunks=(4000, 4000))
        with pytest.raises(ImageTooLarge, match="16,000,000 bytes to be decoded at once"):
            images.read(str(tmp_path / "b.zarr"), max_pixels=600)

    def test_a_folder_that_is_only_called_so_is_a_folder(self, tmp_path: Path) -> None:
        write(tmp_path / "in.zarr" / "b.png", noise(20, 30, 3))
        found = collect([str(tmp_path / "in.zarr")], is_picture=images.is_supported)
        assert [item.key for item in found.items] == ["b"]

    def test_without_zarr_the_package_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = save(tmp_path / "a.zarr", noise(20, 30))
        monkeypatch.setitem(sys.modules, "zarr", None)
        with pytest.raises(ImageError, match="OME-Zarr needs the package zarr") as caught:
            images.read(path)
        assert caught.value.hint == "pip install 'unet-batch[zarr]'"


def test_a_folder_of_pictures_is_not_looked_into_where_one_is_a_folder(tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.ome.zarr", noise(20, 30))
    save(tmp_path / "in" / "sub" / "b.ZARR", noise(20, 30), version="0.5")
    write(tmp_path / "in" / "a.ome.zarr" / "thumbnail.png", noise(20, 30, 3))
    write(tmp_path / "in" / "c.png", noise(20, 30, 3))
    (tmp_path / "list.txt").write_text("in/a.ome.zarr\n")
    for named, keys in (
        ("in", ["a.ome", "c", "sub/b"]),
        ("in/a.ome.zarr", ["a.ome"]),
        ("in/*.zarr", ["a.ome"]),
        ("@list.txt", ["a.ome"]),
    ):
        found = collect([named], is_picture=images.is_supported, cwd=str(tmp_path))
        assert [item.key for item in found.items] == keys, named
        assert dict(found.ignored) == {}


def test_it_is_another_picture_when_a_chunk_of_it_is(tmp_path: Path) -> None:
    path = save(tmp_path / "a.zarr", noise(32, 32))
    before, digest = archives.stat(path), sha256_of(path)
    assert before.size == sum(Path(entry.path).stat().st_size for entry in stores.files_of(path))
    chunk = tmp_path / "a.zarr" / "0" / "1" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"?")
    os.utime(chunk, ns=(before.mtime_ns + 1, before.mtime_ns + 1))
    assert archives.stat(path) == (before.size, before.mtime_ns + 1)
    assert digest
    assert sha256_of(path) not in ("", digest)


@pytest.mark.usefixtures("no_thread_is_left")
class TestRuns:
    def test_a_pyramid_has_the_mask_of_its_pixels_as_png(self, tmp_path: Path) -> None:
        values = noise(3, 50, 70)
        path = Path(save(tmp_path / "in" / "a.zarr", values))
        write(tmp_path / "png" / "a.png", np.ascontiguousarray(np.moveaxis(values, 0, -1)))
        report, _ = segment(tmp_path / "in", output=tmp_path / "out")
        segment(tmp_path / "png", output=tmp_path / "png-out")
        assert report.done == 1
        found = read(tmp_path / "out/masks/a.png")
        np.testing.assert_array_equal(found, read(tmp_path / "png-out/masks/a.png"))
        assert 0 < found.mean() < 255
        again, heard = segment(path, output=tmp_path / "out")
        assert heard == []
        assert again.states == {"done": 1}

    def test_planes_are_pages_with_their_axes(self, tmp_path: Path) -> None:
        values = noise(2, 1, 3, 32, 48)
        path = Path(save(tmp_path / "a.zarr", values))
        segment(path, output=tmp_path / "out", pages=ALL)
        with tifffile.TiffFile(tmp_path / "out/masks/a.tif") as file:
            assert (file.series[0].axes, file.series[0].shape) == ("TZYX", (2, 3, 32, 48))
            np.testing.assert_array_equal(file.asarray(), np.where(values[:, 0] >= 128, 255, 0))
        first, _ = segment(path, output=tmp_path / "first")
        assert "6 pages: the first is read" in str(first.file_notes)

    @pytest.mark.parametrize("channels", [1, 3])
    def test_rows_that_memory_does_not_hold(
        self, tmp_path: Path, channels: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shown = noise(100, 70, channels)
        path = Path(save(tmp_path / "a.zarr", np.moveaxis(shown, -1, 0)))
        tiles, kinds = ViewOptions("tile"), ("mask", "prob16", "geotiff")
        backend = lambda: FakeBackend(fake_spec((32, 48)), batch_size=3)  # noqa: E731
        segment(path, output=tmp_path / "whole", view=tiles, backend=backend(), save=kinds)
        monkeypatch.setattr(giant, "MEMORY", 0)
        monkeypatch.setattr(ome_zarr, "_BAND", 1)
        bands = list(images.read_bands(str(path), (100, 70)))
        assert [len(band.pixels) for band in bands] == [16] * 6 + [4]
        report, _ = segment(path, output=tmp_path / "bands", view=tiles, backend=backend(), save=kinds)
        assert report.done == 1
        for name in ("masks/a.png", "probs16/a.png"):
            np.testing.assert_array_equal(
                read16(tmp_path / "bands" / name), read16(tmp_path / "whole" / name)
            )

    @pytest.mark.parametrize("value_range", ["auto", "percentile", "dtype", "0.2,3"])
    def test_floats_in_bands_are_those_of_the_whole(
        self, tmp_path: Path, value_range: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        values = np.random.default_rng(0).normal(1, 2, (70, 30)).astype(np.float32)
        path = save(tmp_path / "a.zarr", values)
        assert images.measure(path) == ((70, 30), 2100 * 7)
        monkeypatch.setattr(ome_zarr, "_BAND", 1)
        how = images.Range.parse(value_range)
        bands = [band.pixels for band in images.read_bands(path, (70, 30), value_range=how)]
        assert len(bands) > 1
        whole = images.read(path, value_range=how).pixels
        np.testing.assert_array_equal(np.vstack(bands), whole)
        np.testing.assert_array_equal(whole[..., 0], how.apply(values))

    def test_pages_share_a_range(self, tmp_path: Path) -> None:
        values = np.stack([np.full((32, 48), level, np.uint16) for level in (100, 202, 300)])[:, None]
        values[:, :, 0, 0] = 0
        path = save(tmp_path / "a.zarr", values[None].transpose(0, 2, 1, 3, 4))
        shown = images.read_pages(
            path, lambda count: range(count), value_range=images.Range.parse("percentile")
        )
        assert [int(page.pixels[5, 5, 0]) for page in shown] == [0, 130, 255]

    @pytest.mark.parametrize("value_range", ["auto", "percentile"])
    def test_chosen_channels_have_a_range_each(
        self, tmp_path: Path, value_range: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        how, chosen = images.Range.parse(value_range), (4, 2)
        levels = np.array([10, 200, 900, 4000], np.uint16)[:, None, None]
        values = noise(4, 70, 30, kind=np.uint8) * levels
        path = save(tmp_path / "a.zarr", values.astype(np.uint16))
        expected = np.dstack([how.apply(values[at - 1].astype(np.uint16)) for at in chosen])
        read = images.read(path, channels=chosen, value_range=how)
        np.testing.assert_array_equal(read.pixels, expected)
        monkeypatch.setattr(ome_zarr, "_BAND", 1)
        bands = list(images.read_bands(path, (70, 30), value_range=how, channels=chosen))
        np.testing.assert_array_equal(np.vstack([band.pixels for band in bands]), expected)
        [page] = images.read_pages(path, range, channels=(2,), value_range=how)
        np.testing.assert_array_equal(page.pixels, expected[..., 1:])
        assert images.natural_channels(path) == (1, 2, 3, 4)
        with pytest.raises(ImageError, match=r"has 4 bands, the network takes channels 5"):
            images.read(path, channels=(5,))

    @needs_posix
    @pytest.mark.slow
    def test_killed_and_run_again(self, tmp_path: Path) -> None:
        for number in range(6):
            save(tmp_path / "in" / f"{number:02}.zarr", noise(1, 1, 4, 32, 48) // (1 + number % 2))
        kill_and_resume(tmp_path / "in", tmp_path / "out", {"pages": ALL})
        segment(tmp_path / "in", output=tmp_path / "whole", pages=ALL)
        assert len(files(tmp_path / "whole/masks")) == 6
        assert files(tmp_path / "out/masks") == files(tmp_path / "whole/masks")
        for name in files(tmp_path / "out/masks"):
            found = (tmp_path / "out/masks" / name).read_bytes()
            assert found == (tmp_path / "whole/masks" / name).read_bytes()


def read16(path: Path) -> np.ndarray:
    return np.asarray(images.read_ids(str(path)).values)
