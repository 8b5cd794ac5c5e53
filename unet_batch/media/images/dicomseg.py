"""Masks as DICOM Segmentation objects, which refer to the picture that they were made of.

A segment for each class, without the background; of a model of one class one. The same mask of the same
picture is the same file under the same UIDs: these are hashes, and its dates are those of the picture.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Mapping
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from unet_batch.errors import EncodeError, ImageError, UsageError
from unet_batch.media.images.common import ignore_warnings, open_source
from unet_batch.media.images.dicom import count_frames, read_header
from unet_batch.media.images.geotiff import NODATA
from unet_batch.version import __version__

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pydicom import Dataset

    from unet_batch.types import ClassTable, Pixels

_SCHEME = "99UNETBATCH"  # private, as its first digits say: nobody else's codes fit any class
_ASKED_OF_PATIENTS = (  # may be empty, must be there
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber"),
    *("StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName"),
)
_GEOMETRY = ("PixelSpacing", "SliceThickness", "ImagePositionPatient", "ImageOrientationPatient")
_LARGEST = 2**31  # pixels of all frames, a byte each until they are written
_MASK = "save mask instead: PNG, or a stack of several pages"


def check_dicomseg() -> None:
    """See that segmentations can be written.

    Raises:
        UsageError: highdicom is not installed.
    """
    if importlib.util.find_spec("highdicom") is None:
        raise UsageError(
            "--save dicomseg needs the package highdicom", hint="pip install 'unet-batch[dicom]'"
        )


def encode_dicomseg(path: str, frames: Mapping[int, Pixels], classes: ClassTable, model: str) -> bytes:
    """Encode the ids of frames as a Segmentation of a DICOM file.

    Args:
        path: the file.
        frames: by their numbers from 0, uint8 (h, w), NODATA where there is no value: ids of the classes; of
            one class 1 where it is. Those that are left out hold nothing.
        classes: their names.
        model: what made them.

    Raises:
        EncodeError: the picture is no DICOM, cannot be read any more, or lacks what a Segmentation must hold.
    """
    check_dicomseg()
    try:
        with open_source(path, sys.maxsize) as source:
            kind = source.format.name
            header = read_header(source) if kind == "DICOM" else None
    except ImageError as error:
        raise EncodeError(error.message, hint=error.hint) from error
    if header is None:
        raise EncodeError(
            f"a segmentation refers to a DICOM picture, and this is a {kind}",
            hint=f"leave it out, or {_MASK}",
        )
    with ignore_warnings():  # about odd headers
        return _encode(header, frames, classes, model)


def _encode(header: Dataset, frames: Mapping[int, Pixels], classes: ClassTable, model: str) -> bytes:
    from pydicom.uid import generate_uid

    count = count_frames(header)
    if count * int(header.Rows) * int(header.Columns) > _LARGEST:
        raise EncodeError(f"{count:,} frames are too many for one segmentation", hint=_MASK)
    segments, numbers = _segments(classes)
    labels = np.zeros((count, int(header.Rows), int(header.Columns)), np.uint8)
    for at, ids in frames.items():
        labels[at] = numbers[ids]
    contents = hashlib.sha256(labels.tobytes()).hexdigest()
    facts = [str(header.get(name, "")) for name in ("SOPInstanceUID", "SeriesInstanceUID")]
    facts += [model, __version__, contents, *map(str, segments)]
    made = _make(_complete(header, count), labels, segments, model, facts)
    made.ContentDate = header.get("ContentDate") or header.get("StudyDate") or "19700101"
    made.ContentTime = header.get("ContentTime") or header.get("StudyTime") or "000000"
    for name in ("InstanceCreationDate", "InstanceCreationTime"):
        made.pop(name, None)
    for equipment in made.get("ContributingEquipmentSequence", ()):
        equipment.pop("ContributionDateTime", None)
    dimensions = generate_uid(entropy_srcs=[*facts, "dimensions"])
    for name in ("DimensionOrganizationSequence", "DimensionIndexSequence"):
        for item in made.get(name, ()):
            item.DimensionOrganizationUID = dimensions
    out = BytesIO()
    made.save_as(out, enforce_file_format=True)
    return out.getvalue()


def _segments(classes: ClassTable) -> tuple[list[tuple[int, str]], NDArray[np.uint8]]:
    """The number and name of each segment; and the number, 0 for none, that each id stands for."""
    numbers = np.zeros(256, np.uint8)
    if len(classes.names) == 1:
        numbers[1] = 1
        return [(1, classes.names[0])], numbers
    ids = [id for id in range(len(classes.names)) if id not in (classes.background, NODATA)]
    numbers[ids] = np.arange(1, len(ids) + 1)
    return [(number, classes.names[id]) for number, id in enumerate(ids, 1)], numbers


def _complete(header: Dataset, count: int) -> Dataset:
    """Fill in what may be empty but must be there; leave out half a geometry, of which nothing can be made.

    Raises:
        EncodeError: what is needed is missing.
    """
    lacking = [n for n in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID") if not header.get(n)]
    if lacking:
        raise EncodeError(
            f"its header has no {', '.join(lacking)}, which a segmentation refers to", hint=_MASK
        )
    if count > 1 and "SharedFunctionalGroupsSequence" not in header:
        raise EncodeError(
            f"its {count:,} frames are of a kind whose segmentation needs functional groups "
            f"({header.SOPClassUID.name})",
            hint=_MASK,
        )
    for name in _ASKED_OF_PATIENTS:
        if name not in header:
            setattr(header, name, "")
    if "Modality" not in header:
        header.Modality = "OT"
    if "SharedFunctionalGroupsSequence" not in header and not all(header.get(name) for name in _GEOMETRY):
        for name in ("FrameOfReferenceUID", *_GEOMETRY):
            header.pop(name, None)
    return header


def _make(
    header: Dataset, labels: Pixels, segments: list[tuple[int, str]], model: str, facts: list[str]
) -> Any:
    """Make the Segmentation.

    Raises:
        EncodeError: highdicom does not accept the header.
    """
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.seg import Segmentation, SegmentDescription
    from highdicom.sr import CodedConcept
    from pydicom.sr.codedict import codes
    from pydicom.uid import generate_uid

    algorithm = AlgorithmIdentificationSequence(
        name=model[:64], family=codes.DCM.ArtificialIntelligence, version=__version__, source="unet-batch"
    )
    descriptions = [
        SegmentDescription(
            segment_number=number,
            segment_label=name[:64],
            # What it is depends on the model: of the standard's categories this one claims nothing
            segmented_property_category=codes.SCT.SpatialAndRelationalConcept,
            segmented_property_type=CodedConcept(f"CLASS{number}", _SCHEME, name[:64]),
            algorithm_type="AUTOMATIC",
            algorithm_identification=algorithm,
        )
        for number, name in segments
    ]
    try:
        return Segmentation(
            [header],
            labels if len(labels) > 1 else labels[0],
            "BINARY",
            descriptions,
            series_instance_uid=generate_uid(entropy_srcs=[str(header.SeriesInstanceUID), model]),
            series_number=int(header.get("SeriesNumber") or 0) + 1000,  # behind those of the scanner
            sop_instance_uid=generate_uid(entropy_srcs=facts),
            instance_number=max(1, int(header.get("InstanceNumber") or 1)),
            manufacturer="unet-batch",
            manufacturer_model_name=model[:64],
            software_versions=__version__,
            device_serial_number="0",
        )
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise EncodeError(f"no segmentation can be made of its header: {error}", hint=_MASK) from error


class SegmentationWriter:
    """Takes ids of frames one after the other, writes their Segmentation at the end; a context manager.

    Args:
        path: of the file.
        picture: the DICOM file that the frames are of.
        first: the number of the first frame that comes, from 0.
        classes, model: as for `encode_dicomseg`.

    Raises:
        EncodeError: at the end, as `encode_dicomseg`; nothing is written then, nor after another error.
    """

    def __init__(self, path: str, picture: str, first: int, classes: ClassTable, model: str) -> None:
        self._path, self._picture, self._first = path, picture, first
        self._classes, self._model = classes, model
        self._frames: list[Pixels] = []

    def __enter__(self) -> SegmentationWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None:
            frames = dict(enumerate(self._frames, self._first))
            data = encode_dicomseg(self._picture, frames, self._classes, self._model)
            with open(self._path, "wb") as file:
                file.write(data)

    def write(self, page: NDArray[Any], dpi: tuple[float, float] | None) -> None:
        """Take the ids of the next frame, uint8 (h, w), NODATA where there is no value."""
        self._frames.append(page)
