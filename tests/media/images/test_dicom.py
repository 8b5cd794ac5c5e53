"""DICOM: frames as a viewer shows them, and every kind of file that pydicom brings along."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from tests.helpers.dicom import sample, save_dicom, save_frames
from tests.helpers.runs import files, kill_and_resume, read, segment, write
from tests.helpers.systems import needs_posix
from unet_batch.errors import ImageError, ImageTooLarge
from unet_batch.media import images
from unet_batch.media.images import dicom
from unet_batch.run.options import PageRange

pytest.importorskip("pydicom", reason="pydicom is not installed: pip install 'unet-batch[dicom]'")
pytest.importorskip("highdicom", reason="highdicom is not installed: pip install 'unet-batch[dicom]'")

ALL = PageRange()


def noise(*shape: int, kind: Any = np.uint8, low: int = 0) -> np.ndarray:
    return np.random.default_rng(len(shape)).integers(low, np.iinfo(kind).max, shape, kind)


class TestWhatAFileShows:
    @pytest.mark.parametrize(("kind", "bits"), [(np.uint8, 8), (np.uint16, 16), (np.uint16, 12)])
    def test_unsigned_numbers_count_by_their_bits(self, tmp_path: Path, kind: Any, bits: int) -> None:
        values = noise(20, 30, kind=kind) >> (np.iinfo(kind).bits - bits)
        shown = images.read(save_dicom(tmp_path / "a.dcm", values, bits)).pixels
        np.testing.assert_array_equal(shown[..., 1], np.rint(values * (255 / (2**bits - 1))))

    def test_other_numbers_count_from_least_to_most(self, tmp_path: Path) -> None:
        values = np.linspace(-1000, 3000, 600).astype(np.int16).reshape(20, 30)
        path = save_dicom(tmp_path / "a.dcm", values, RescaleSlope=2, RescaleIntercept=-1024)
        expected = np.rint((values + 1000) * (255 / 4000))
        np.testing.assert_allclose(images.read(path).pixels[..., 0], expected, atol=1)

    @pytest.mark.parametrize(
        ("function", "expected"),
        [
            # PS3.3 C.11.2.1.2.1: (x - (c - 0.5)) / (w - 1) + 0.5, and C.11.2.1.3 for the others
            ("LINEAR", lambda x: np.rint(np.clip((x - 39.5) / 399 + 0.5, 0, 1) * 255)),
            ("LINEAR_EXACT", lambda x: np.rint(np.clip((x - 40) / 400 + 0.5, 0, 1) * 255)),
            ("SIGMOID", lambda x: np.rint(255 / (1 + np.exp(-4 * (x - 40) / 400)))),
        ],
    )
    def test_the_window_is_that_of_rescaled_numbers(
        self, tmp_path: Path, function: str, expected: Any
    ) -> None:
        stored = np.arange(600, 1800, 2, dtype=np.int16).reshape(20, 30)
        path = save_dicom(
            tmp_path / "a.dcm",
            stored,
            RescaleSlope=1,
            RescaleIntercept=-1024,
            WindowCenter=[40, 500],
            WindowWidth=[400, 1500],
            VOILUTFunction=function,
        )
        np.testing.assert_array_equal(images.read(path).pixels[..., 0], expected(stored - 1024.0))

    def test_a_range_is_of_rescaled_numbers_in_the_place_of_the_window(self, tmp_path: Path) -> None:
        stored = np.arange(600, 1800, 2, dtype=np.int16).reshape(20, 30)
        rescale = {"RescaleSlope": 1, "RescaleIntercept": -1024}
        path = save_dicom(tmp_path / "a.dcm", stored, WindowCenter=40, WindowWidth=400, **rescale)
        lungs = images.read(path, value_range=images.Range.parse("-100,300")).pixels[..., 0]
        np.testing.assert_array_equal(lungs, np.rint(((stored - 1024.0) + 100).clip(0, 400) * (255 / 400)))
        most = images.read(path, value_range=images.Range.parse("percentile")).pixels[..., 0]
        assert (most.min(), most.max(), most[10, 0]) == (0, 255, 128)

    def test_frames_share_a_range(self, tmp_path: Path) -> None:
        levels = (100, 202, 300)
        slices = [
            save_dicom(tmp_path / f"{level}.dcm", np.full((20, 30), level, np.uint16), InstanceNumber=at)
            for at, level in enumerate(levels, 1)
        ]
        path = save_frames(tmp_path / "a.dcm", slices)
        how = images.Range.parse("percentile")
        shown = images.read_pages(str(path), lambda count: range(count), value_range=how)
        assert [int(page.pixels[5, 5, 0]) for page in shown] == [0, 130, 255]

    def test_monochrome1_is_inverted_and_padding_has_no_value(self, tmp_path: Path) -> None:
        values = np.tile(np.arange(30, dtype=np.uint8) * 8, (20, 1))
        attributes = {"PhotometricInterpretation": "MONOCHROME1", "PixelPaddingValue": 0}
        picture = images.read(save_dicom(tmp_path / "a.dcm", values, **attributes))
        assert picture.missing is not None
        np.testing.assert_array_equal(picture.missing, values == 0)
        np.testing.assert_array_equal(picture.pixels[..., 2], np.where(values == 0, 0, 255 - values))

    def test_padding_does_not_widen_the_range(self, tmp_path: Path) -> None:
        values = np.tile(np.arange(100, 130, dtype=np.int16), (20, 1))
        values[:5] = -2000
        picture = images.read(save_dicom(tmp_path / "a.dcm", values, PixelPaddingValue=-2000))
        np.testing.assert_array_equal(picture.pixels[10, :, 0], np.rint(np.arange(30) * (255 / 29)))
        assert picture.missing is not None
        assert picture.missing[:5].all()

    def test_colour(self, tmp_path: Path) -> None:
        values = noise(20, 30, 3)
        np.testing.assert_array_equal(images.read(save_dicom(tmp_path / "a.dcm", values)).pixels, values)

    @pytest.mark.parametrize(
        ("name", "like"),
        [
            ("MR_small_RLE.dcm", "MR_small.dcm"),
            ("MR_small_bigendian.dcm", "MR_small.dcm"),
            ("MR_small_implicit.dcm", "MR_small.dcm"),
            ("MR_small_jp2klossless.dcm", "MR_small.dcm"),
            ("MR_small_jpeg_ls_lossless.dcm", "MR_small.dcm"),
            ("SC_rgb_rle_16bit.dcm", "SC_rgb_rle.dcm"),
            ("SC_rgb_rle_32bit.dcm", "SC_rgb_rle.dcm"),
            ("SC_rgb_jpeg_gdcm.dcm", "SC_rgb_rle.dcm"),  # JPEG, lossless: by imagecodecs
            ("JPGExtended.dcm", "JPEG-lossy.dcm"),  # JPEG of 12 bits
            ("rtdose_rle.dcm", "rtdose.dcm"),
        ],
    )
    def test_the_same_picture_in_another_encoding(self, name: str, like: str) -> None:
        np.testing.assert_array_equal(images.read(sample(name)).pixels, images.read(sample(like)).pixels)

    def test_a_palette_is_looked_up(self) -> None:
        import pydicom
        from pydicom.pixels import apply_color_lut

        header = pydicom.dcmread(sample("examples_palette.dcm"))
        expected = apply_color_lut(header.pixel_array, header)
        found = images.read(sample("examples_palette.dcm")).pixels
        np.testing.assert_allclose(found, expected / (257 if expected.dtype == np.uint16 else 1), atol=0.5)

    def test_deflated_and_where_only_a_frame_is_held(self, monkeypatch: pytest.MonkeyPatch) -> None:
        names = ("image_dfl.dcm", "CT_small.dcm", "SC_rgb_rle_2frame.dcm", "examples_ybr_color.dcm")
        before = [images.read(sample(name)).pixels for name in names]
        monkeypatch.setattr(dicom, "_HELD", 0)
        for name, pixels in zip(names, before, strict=True):
            np.testing.assert_array_equal(images.read(sample(name)).pixels, pixels)

    def test_it_is_dicom_whatever_its_first_bytes_say(self, tmp_path: Path) -> None:
        """Scanners put the beginning of a TIFF before it, as that in CT_small does."""
        data = Path(save_dicom(tmp_path / "a.dcm", noise(20, 30))).read_bytes()
        for begin in (b"II*\0", b"MM\0*", b"\xff\xd8\xff\xe0", b"BM"):
            (tmp_path / "b").write_bytes(begin + data[len(begin) :])
            assert images.read(str(tmp_path / "b")).size == (20, 30)

    def test_as_a_mask_its_numbers_are_ids(self, tmp_path: Path) -> None:
        values = noise(20, 30) % 5
        stored = images.read_ids(
            save_dicom(tmp_path / "a.dcm", values, 3, RescaleSlope=9, RescaleIntercept=1)
        )
        np.testing.assert_array_equal(stored.values, values)
        assert (stored.kind, stored.full) == ("grey", 7)


class TestWhatIsNotRead:
    @pytest.mark.parametrize(
        ("name", "says"),
        [
            ("MR_truncated.dcm", "its data are damaged or cut short"),
            ("badVR.dcm", "its data are damaged or cut short"),
            ("test-SR.dcm", r"holds no picture \(Comprehensive SR Storage\)"),
            ("rtplan.dcm", r"holds no picture \(RT Plan Storage\)"),
        ],
    )
    def test_is_told(self, name: str, says: str) -> None:
        with pytest.raises(ImageError, match=says):
            images.read(sample(name))

    def test_an_unknown_compression_is_named(self, tmp_path: Path) -> None:
        import pydicom

        ds = pydicom.dcmread(sample("SC_rgb_jpeg_gdcm.dcm"))
        ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.201"
        ds.save_as(tmp_path / "a.dcm")
        with pytest.raises(ImageError, match="DICOM compressed with High-Throughput JPEG 2000"):
            images.read(str(tmp_path / "a.dcm"))

    def test_limits_hold_before_anything_is_decoded(self, tmp_path: Path) -> None:
        path = save_dicom(tmp_path / "a.dcm", noise(20, 30))
        assert images.read(path, max_pixels=600).size == (20, 30)
        with pytest.raises(ImageTooLarge, match="the limit is 599"):
            images.read(path, max_pixels=599)

    def test_without_pydicom_the_package_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = save_dicom(tmp_path / "a.dcm", noise(20, 30))
        monkeypatch.setitem(sys.modules, "pydicom", None)
        with pytest.raises(ImageError, match="DICOM needs the package pydicom") as caught:
            images.read(path)
        assert caught.value.hint == "pip install 'unet-batch[dicom]'"


@pytest.mark.usefixtures("no_thread_is_left")
class TestRuns:
    def test_a_series_has_the_masks_of_its_pixels_as_png(self, tmp_path: Path) -> None:
        """With names as scanners give them, without an extension, beside what is no picture."""
        for number in range(3):
            values = np.random.default_rng(number).integers(0, 65536, (20, 30), np.uint16)
            save_dicom(tmp_path / "in" / "S1" / f"IM{number:04}", values)
            write(tmp_path / "png" / "S1" / f"IM{number:04}.png", values)
        (tmp_path / "in" / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
        (tmp_path / "in" / "README").write_bytes(b"for the doctor")
        report, _ = segment(tmp_path / "in", output=tmp_path / "out")
        segment(tmp_path / "png", output=tmp_path / "png-out")
        assert (report.done, report.failed) == (3, 0)
        assert files(tmp_path / "out/masks") == files(tmp_path / "png-out/masks")
        for name in files(tmp_path / "out/masks"):
            found = read(tmp_path / "out/masks" / name)
            np.testing.assert_array_equal(found, read(tmp_path / "png-out/masks" / name))
            assert 0 < found.mean() < 255

    def test_names_that_are_uids_and_a_zip_of_them(self, tmp_path: Path) -> None:
        for number in (55, 56):
            save_dicom(tmp_path / "in" / f"1.2.840.113.{number}", noise(20, 30))
        with zipfile.ZipFile(tmp_path / "in.zip", "w") as packed:
            for path in (tmp_path / "in").iterdir():
                packed.write(path, path.name)
        for source in ("in", "in.zip"):
            segment(tmp_path / source, output=tmp_path / f"{source}-out")
            assert files(tmp_path / f"{source}-out/masks") == ["1.2.840.113.55.png", "1.2.840.113.56.png"]

    def test_frames_are_pages(self, tmp_path: Path) -> None:
        slices = [
            np.random.default_rng(number).integers(0, 65536, (20, 30), np.uint16) for number in range(4)
        ]
        names = [
            save_dicom(
                tmp_path / f"{number}.dcm",
                values,
                ImagePositionPatient=[0, 0, -2 * number],  # which orders the frames
                InstanceNumber=number + 1,
                WindowCenter=20000 + 1000 * number,  # each frame has its own
                WindowWidth=30000,
                ImageType=["ORIGINAL", "PRIMARY", "AXIAL"],
                AcquisitionDate="20260102",
                AcquisitionTime="030405",
                AcquisitionNumber=1,
            )
            for number, values in enumerate(slices)
        ]
        path = save_frames(tmp_path / "all.dcm", names)
        for number, name in enumerate(names):
            write(tmp_path / "png" / f"{number}.png", images.read(name).pixels)
        segment(Path(path), output=tmp_path / "out", pages=ALL)
        segment(tmp_path / "png", output=tmp_path / "png-out")
        found = tifffile.imread(tmp_path / "out/masks/all.tif")
        expected = np.stack([read(tmp_path / f"png-out/masks/{number}.png") for number in range(4)])
        np.testing.assert_array_equal(found, expected)
        assert len({page.tobytes() for page in found}) == 4
        first, _ = segment(Path(path), output=tmp_path / "first")
        assert "4 frames: the first is read" in str(first.file_notes)
        np.testing.assert_array_equal(read(tmp_path / "first/masks/all.png"), expected[0])

    @needs_posix
    @pytest.mark.slow
    def test_a_series_killed_and_run_again(self, tmp_path: Path) -> None:
        for number in range(30):
            save_dicom(tmp_path / "in" / f"IM{number:02}", noise(20, 30) // (1 + number % 2))
        kill_and_resume(tmp_path / "in", tmp_path / "out", {})
        segment(tmp_path / "in", output=tmp_path / "whole")
        assert len(files(tmp_path / "whole/masks")) == 30
        for name in files(tmp_path / "whole/masks"):
            found = (tmp_path / "out/masks" / name).read_bytes()
            assert found == (tmp_path / "whole/masks" / name).read_bytes()
