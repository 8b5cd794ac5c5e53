"""DICOM files made for tests, and those that pydicom brings along."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np


def sample(name: str) -> str:
    """The path of a file inside pydicom's own package; of those that it would download there is none here."""
    import pydicom

    path = Path(pydicom.__file__).parent / "data" / "test_files" / name
    assert path.is_file(), name
    return os.fspath(path)


def save_dicom(path: Path, values: np.ndarray, bits: int = 0, **attributes: Any) -> str:
    """Write a slice of a CT: grey (h, w) or RGB (h, w, 3), with its place in a patient."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    of = lambda what: generate_uid(entropy_srcs=[what])  # noqa: E731 - the same file for the same picture
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"  # CT
    ds.SOPInstanceUID = of(str(path.name))
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = of("study"), of("series"), of("frame")
    ds.Modality, ds.PatientID, ds.PatientName = "CT", "7", "Test^Anna"
    ds.PatientBirthDate = ds.PatientSex = ds.AccessionNumber = ds.StudyID = ds.ReferringPhysicianName = ""
    ds.StudyDate, ds.StudyTime, ds.SeriesNumber, ds.InstanceNumber = "20260102", "030405", 3, 1
    ds.PixelSpacing, ds.SliceThickness = [0.5, 0.5], 2
    ds.ImagePositionPatient, ds.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
    ds.PositionReferenceIndicator = ""
    ds.Rows, ds.Columns = values.shape[:2]
    ds.SamplesPerPixel = values.shape[2] if values.ndim == 3 else 1
    ds.PhotometricInterpretation = "RGB" if values.ndim == 3 else "MONOCHROME2"
    if values.ndim == 3:
        ds.PlanarConfiguration = 0
    ds.BitsAllocated = values.itemsize * 8
    ds.BitsStored = bits or ds.BitsAllocated
    ds.HighBit, ds.PixelRepresentation = ds.BitsStored - 1, int(values.dtype.kind == "i")
    for name, value in attributes.items():
        setattr(ds, name, value)
    ds.PixelData = values.tobytes() + bytes(values.nbytes % 2)
    ds["PixelData"].VR = "OB" if values.itemsize == 1 else "OW"
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return os.fspath(path)


def save_frames(path: Path, slices: list[str]) -> str:
    """One file of several frames, with functional groups, of slices of a CT."""
    import pydicom
    from highdicom.legacy import LegacyConvertedEnhancedCTImage
    from pydicom.uid import generate_uid

    made = LegacyConvertedEnhancedCTImage(
        [pydicom.dcmread(name) for name in slices],
        series_instance_uid=generate_uid(entropy_srcs=["frames"]),
        series_number=1,
        sop_instance_uid=generate_uid(entropy_srcs=[path.name]),
        instance_number=1,
    )
    made.save_as(path, enforce_file_format=True)
    return os.fspath(path)
