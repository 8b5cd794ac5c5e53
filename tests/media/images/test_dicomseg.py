"""DICOM Segmentations: what they refer to, hold and are called, read back by highdicom."""

from __future__ import annotations

import shutil
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.dicom import sample, save_dicom, save_frames
from tests.helpers.runs import files, read, segment, write
from unet_batch.errors import EncodeError, UsageError
from unet_batch.inference.segmenter import Segmenter
from unet_batch.media import images
from unet_batch.media.images import dicomseg
from unet_batch.run.execute import execute
from unet_batch.run.options import PageRange, RunOptions
from unet_batch.run.plan import prepare
from unet_batch.testing import FakeBackend, fake_spec
from unet_batch.types import ClassTable

hd = pytest.importorskip("highdicom", reason="highdicom is not installed: pip install 'unet-batch[dicom]'")

CAR = ClassTable(("car",), ((255, 0, 0),))
KINDS = ("mask", "dicomseg")


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)


def segments(path: Path) -> tuple[Any, np.ndarray]:
    """A Segmentation, and its frames put together as segment numbers: (frames, h, w)."""
    seg = hd.seg.segread(path)
    found = np.zeros((seg.NumberOfFrames, seg.Rows, seg.Columns), np.uint8)
    for at, group in enumerate(seg.PerFrameFunctionalGroupsSequence):
        shared = seg.SharedFunctionalGroupsSequence[0]
        named = group if "SegmentIdentificationSequence" in group else shared
        number = named.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        found[at] = number * seg.get_frame(at + 1)
    return seg, found


def test_it_refers_to_its_picture_and_holds_its_mask(tmp_path: Path) -> None:
    import pydicom

    source = Path(save_dicom(tmp_path / "a.dcm", noise(20, 30)))
    report, _ = segment(source, output=tmp_path / "out", save=KINDS)
    assert (report.done, report.failed) == (1, 0)
    assert files(tmp_path / "out/dicomsegs") == ["a.dcm"]
    seg, found = segments(tmp_path / "out/dicomsegs/a.dcm")
    np.testing.assert_array_equal(found[0] * 255, read(tmp_path / "out/masks/a.png"))
    header = pydicom.dcmread(source)
    [series] = seg.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == header.SeriesInstanceUID
    [instance] = series.ReferencedInstanceSequence
    assert instance.ReferencedSOPInstanceUID == header.SOPInstanceUID
    for name in ("PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert seg[name].value == header[name].value
    assert seg.SeriesInstanceUID != header.SeriesInstanceUID
    [description] = seg.SegmentSequence
    assert description.SegmentLabel == "class0"
    assert description.SegmentationAlgorithmIdentificationSequence[0].AlgorithmName == "fake"
    assert seg.get_volume().spatial_shape == (1, 20, 30)


def test_every_class_but_the_background_is_a_segment(tmp_path: Path) -> None:
    ids = np.asarray([[0, 1, 2, 3], [3, 2, 1, images.NODATA]], np.uint8)
    source = save_dicom(tmp_path / "a.dcm", noise(2, 4))
    named = ClassTable(("sky", "car", "background", "tree"), ((0, 0, 0),) * 4)
    (tmp_path / "s.dcm").write_bytes(images.encode_dicomseg(source, {0: ids}, named, "m"))
    seg, found = segments(tmp_path / "s.dcm")
    assert [each.SegmentLabel for each in seg.SegmentSequence] == ["sky", "car", "tree"]
    np.testing.assert_array_equal(found.max(axis=0), [[1, 2, 0, 3], [3, 0, 2, 0]])
    plain = ClassTable(("sky", "car", "road", "tree"), ((0, 0, 0),) * 4)
    (tmp_path / "s.dcm").write_bytes(images.encode_dicomseg(source, {0: ids}, plain, "m"))
    assert len(segments(tmp_path / "s.dcm")[0].SegmentSequence) == 4


def test_the_same_mask_is_the_same_file_and_another_has_another_name(tmp_path: Path) -> None:
    import pydicom

    source, ids = save_dicom(tmp_path / "a.dcm", noise(20, 30)), noise(20, 30) // 128
    first = images.encode_dicomseg(source, {0: ids}, CAR, "m")
    assert images.encode_dicomseg(source, {0: ids}, CAR, "m") == first
    uids = {pydicom.dcmread(BytesIO(first)).SOPInstanceUID}
    for frames, classes, model in (
        ({0: 1 - ids}, CAR, "m"),
        ({0: ids}, ClassTable(("cat",), CAR.colours), "m"),
        ({0: ids}, CAR, "n"),
    ):
        uids.add(
            pydicom.dcmread(BytesIO(images.encode_dicomseg(source, frames, classes, model))).SOPInstanceUID
        )
    assert len(uids) == 4
    once = pydicom.dcmread(BytesIO(first))
    other = save_dicom(tmp_path / "b.dcm", noise(20, 30))
    twice = pydicom.dcmread(BytesIO(images.encode_dicomseg(other, {0: ids}, CAR, "m")))
    assert once.SeriesInstanceUID == twice.SeriesInstanceUID, "a series of masks for a series of slices"
    assert once.SOPInstanceUID != twice.SOPInstanceUID


def test_an_empty_mask_is_one_too(tmp_path: Path) -> None:
    source = save_dicom(tmp_path / "a.dcm", noise(20, 30))
    ids = np.zeros((20, 30), np.uint8)
    (tmp_path / "s.dcm").write_bytes(images.encode_dicomseg(source, {0: ids}, CAR, "m"))
    assert not segments(tmp_path / "s.dcm")[1].any()


def test_frames_of_one_file_are_one_segmentation(tmp_path: Path) -> None:
    names = [
        save_dicom(
            tmp_path / f"{number}.dcm",
            noise(32, 48, number),
            ImagePositionPatient=[0, 0, -2 * number],
            InstanceNumber=number + 1,
            ImageType=["ORIGINAL", "PRIMARY", "AXIAL"],
            RescaleSlope=1,
            RescaleIntercept=0,
            AcquisitionNumber=1,
        )
        for number in range(4)
    ]
    path = Path(save_frames(tmp_path / "all.dcm", names))
    for pages, first in ((PageRange(), 0), (PageRange(2, 3), 1)):
        out = tmp_path / f"out-{first}"
        report, _ = segment(path, output=out, save=("dicomseg",), pages=pages)
        assert (report.done, report.failed) == (1, 0), report.failures
        seg, found = segments(out / "dicomsegs/all.dcm")
        taken = list(pages.of(4))
        assert len(found) == len(taken)
        for at, number in enumerate(taken):
            [derived] = seg.PerFrameFunctionalGroupsSequence[at].DerivationImageSequence
            frame = int(derived.SourceImageSequence[0].ReferencedFrameNumber) - 1
            assert frame == number
            np.testing.assert_array_equal(found[at], noise(32, 48, number) >= 128)
    again, heard = segment(path, output=tmp_path / "out-1", save=("dicomseg",), pages=PageRange(2, 3))
    assert (again.states, heard) == ({"done": 1}, [])


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm", "examples_palette.dcm", "JPEG2000.dcm"])
def test_of_files_as_they_are(tmp_path: Path, name: str) -> None:
    shutil.copy(sample(name), tmp_path / "a.dcm")
    report, _ = segment(tmp_path / "a.dcm", output=tmp_path / "out", save=KINDS)
    assert report.done == 1, report.failures
    _, found = segments(tmp_path / "out/dicomsegs/a.dcm")
    np.testing.assert_array_equal(found.max(axis=0) * 255, read(tmp_path / "out/masks/a.png"))


class TestWhatHasNone:
    def test_frames_of_which_nobody_says_where_they_are(self, tmp_path: Path) -> None:
        shutil.copy(sample("examples_ybr_color.dcm"), tmp_path / "a.dcm")
        report, _ = segment(tmp_path / "a.dcm", output=tmp_path / "out", save=KINDS)
        [failure] = report.failures
        assert "a.dcm: dicomseg: its 30 frames are of a kind whose segmentation needs functional groups" in (
            failure.message
        )
        assert "save mask instead" in failure.hint
        assert files(tmp_path / "out/masks") == []

    def test_a_header_that_says_too_little(self, tmp_path: Path) -> None:
        source = save_dicom(tmp_path / "a.dcm", noise(2, 4), StudyInstanceUID="")
        with pytest.raises(EncodeError, match="its header has no StudyInstanceUID"):
            images.encode_dicomseg(source, {0: np.zeros((2, 4), np.uint8)}, CAR, "m")
        source = save_dicom(tmp_path / "a.dcm", noise(2, 4), FrameOfReferenceUID="", SliceThickness=None)
        with pytest.raises(
            EncodeError, match=r"no segmentation can be made of its header: .*Frame Of Reference"
        ):
            images.encode_dicomseg(source, {0: np.zeros((2, 4), np.uint8)}, CAR, "m")

    def test_a_picture_of_another_format_fails_alone(self, tmp_path: Path) -> None:
        save_dicom(tmp_path / "in" / "a.dcm", noise(20, 30))
        write(tmp_path / "in" / "b.png", noise(20, 30))
        report, _ = segment(tmp_path / "in", output=tmp_path / "out", save=KINDS)
        [failure] = report.failures
        assert (
            "b.png: dicomseg: a segmentation refers to a DICOM picture, and this is a PNG" in failure.message
        )
        assert files(tmp_path / "out/dicomsegs") == ["a.dcm"]

    def test_a_run_of_no_dicom_at_all_does_not_begin(self, tmp_path: Path) -> None:
        write(tmp_path / "in" / "b.png", noise(20, 30))
        with pytest.raises(UsageError, match="none of the 1 pictures is called like one"):
            segment(tmp_path / "in", output=tmp_path / "out", save=KINDS)

    def test_without_highdicom_a_run_does_not_begin(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        save_dicom(tmp_path / "in" / "a.dcm", noise(20, 30))
        monkeypatch.setattr(dicomseg.importlib.util, "find_spec", lambda name: None)  # type: ignore[attr-defined]
        with pytest.raises(UsageError, match="--save dicomseg needs the package highdicom") as caught:
            segment(tmp_path / "in", output=tmp_path / "out", save=KINDS)
        assert caught.value.hint == "pip install 'unet-batch[dicom]'"


def test_isolated(tmp_path: Path) -> None:
    source = save_dicom(tmp_path / "a.dcm", noise(20, 30))
    segment(Path(source), output=tmp_path / "out", save=KINDS)
    plan = prepare(RunOptions((source,), str(tmp_path / "apart"), save=KINDS, isolate=True))
    with Segmenter(FakeBackend(fake_spec()), workers=1, isolate=True) as segmenter:
        assert execute(plan, segmenter).done == 1
    apart = (tmp_path / "apart/dicomsegs/a.dcm").read_bytes()
    assert apart == (tmp_path / "out/dicomsegs/a.dcm").read_bytes()
    assert "highdicom" in sys.modules
