"""Whether every kind of source ends as the masks of its pixels as PNG, also after kill -9.

    python -m scripts.check_sources WORK [KIND ...] [--photos N] [--model FILE]

Drawn photos of cars, of which a corner is black, are packed as stacks of TIFF, 5-D OME-TIFF, GeoTIFF of four
bands in which black is nodata, pyramids of OME-Zarr, a series of DICOM, a ZIP, and objects of S3 by moto's
server on this machine. Each kind is segmented into a folder, is killed once a third and once two thirds of
its files are there, and goes on; then its masks are compared with those of the same pixels as PNG files.
Prints a table; exits with 1 where a mask differs. The kinds gs and az are left out unless named: they take
servers of Google's buckets (gcp-storage-emulator) and of Azure's (azurite-blob in the path) on this machine.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tifffile
from PIL import Image

from unet_batch.files import remote

PAGES = 40
# The account that Azurite knows, which Microsoft documents
ACCOUNT = (
    "devstoreaccount1",
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==",
)
# A square of half a metre a pixel in UTM zone 32 north, as GDAL writes it
PLACE = [
    (33550, 12, 3, (0.5, 0.5, 0.0), True),
    (33922, 12, 6, (0.0, 0.0, 0.0, 500000.0, 5600000.0, 0.0), True),
    (34735, 3, 16, (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32632), True),
    (42113, 2, None, "0", True),
]


class Packed(NamedTuple):
    """Pictures as a kind of source.

    Attributes:
        source: what is given to `run`.
        output: where its outputs go.
        options: of `run`.
        masks: the mask of each picture, in order: uint8 (n, h, w), read when asked.
        files: how many files of masks there will be.
        valueless: pixels without a value, bool (n, h, w); None where all have one.
    """

    source: str
    output: str
    options: tuple[str, ...]
    masks: Callable[[], np.ndarray]
    files: int
    valueless: np.ndarray | None = None


def read(path: Path) -> np.ndarray:
    """The pixels of a file, RGB or grey."""
    with Image.open(path) as file:
        return np.asarray(file)


def read_all(folder: Path) -> np.ndarray:
    """The masks below a folder, pages of stacks one after the other."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    masks = [tifffile.imread(path) if path.suffix == ".tif" else read(path)[None] for path in files]
    return np.concatenate([mask.reshape(-1, *mask.shape[-2:]) for mask in masks])


def stacks(photos: np.ndarray, folder: Path) -> Packed:
    """Stacks of 40 pages."""
    for number in range(0, len(photos), PAGES):
        pages = photos[number : number + PAGES]
        tifffile.imwrite(folder / "in" / f"{number:05}.tif", pages, photometric="rgb")
    return local(folder, -(-len(photos) // PAGES), "--pages", "all")


def ome_tiff(photos: np.ndarray, folder: Path) -> Packed:
    """OME-TIFF of five axes: 4 times, 5 planes."""
    for number in range(0, len(photos) // 20 * 20, 20):
        planes = photos[number : number + 20].reshape(4, 5, *photos.shape[1:])
        tifffile.imwrite(
            folder / "in" / f"{number:05}.ome.tif",
            np.moveaxis(planes, -1, 2),
            photometric="minisblack",
            metadata={"axes": "TZCYX"},
        )
    return local(folder, len(photos) // 20, "--pages", "all", "--channels", "1,2,3")


def geotiff(photos: np.ndarray, folder: Path) -> Packed:
    """GeoTIFF of four bands, the corner without a value."""
    valueless = (photos == 0).all(-1)
    for number, photo in enumerate(photos):
        band = np.where(valueless[number], 0, 9).astype(np.uint8)
        bands = np.dstack([photo, band])
        tifffile.imwrite(
            folder / "in" / f"{number:05}.tif",
            bands,
            photometric="rgb",
            extrasamples=["unspecified"],
            extratags=PLACE,
            metadata=None,
        )
    return local(folder, len(photos), "--save", "mask,geotiff")._replace(valueless=valueless)


def zarr_pyramids(photos: np.ndarray, folder: Path) -> Packed:
    """OME-Zarr of three levels."""
    import zarr

    for number, photo in enumerate(np.moveaxis(photos, -1, 1)):
        group = zarr.open_group(folder / "in" / f"{number:05}.zarr", mode="w", zarr_format=2)
        for level in range(3):
            data = photo[:, :: 2**level, :: 2**level]
            group.create_array(
                str(level),
                data=data,
                chunks=(1, 64, 64),
                chunk_key_encoding={"name": "v2", "separator": "/"},
            )
        levels = [{"path": str(level)} for level in range(3)]
        axes = [{"name": axis} for axis in "cyx"]
        group.attrs.update({"multiscales": [{"axes": axes, "datasets": levels}]})
    return local(folder, len(photos))


def dicom(photos: np.ndarray, folder: Path) -> Packed:
    """A series of DICOM files in colour."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    series = generate_uid(entropy_srcs=["series"])
    for number, photo in enumerate(photos):
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.4"  # a photograph
        ds.SOPInstanceUID = generate_uid(entropy_srcs=[str(number)])
        ds.StudyInstanceUID = ds.SeriesInstanceUID = series
        ds.Modality, ds.InstanceNumber = "XC", number + 1
        ds.Rows, ds.Columns, ds.SamplesPerPixel = photo.shape
        ds.PhotometricInterpretation, ds.PlanarConfiguration = "RGB", 0
        ds.BitsAllocated = ds.BitsStored = 8
        ds.HighBit, ds.PixelRepresentation = 7, 0
        ds.PixelData = photo.tobytes() + bytes(photo.size % 2)
        ds["PixelData"].VR = "OB"
        ds.save_as(folder / "in" / f"IM{number:05}", enforce_file_format=True)
    return local(folder, len(photos))


def zipped(photos: np.ndarray, folder: Path) -> Packed:
    """A ZIP of PNG files."""
    with zipfile.ZipFile(folder / "in" / "photos.zip", "w") as archive:
        for number, photo in enumerate(photos):
            archive.writestr(f"{number:05}.png", encode(photo))
    return local(folder, len(photos))._replace(source=str(folder / "in" / "photos.zip"))


def in_a_bucket(scheme: str, photos: np.ndarray, folder: Path) -> Packed:
    """Objects in a bucket, into the bucket."""
    address = f"{scheme}://photos-{os.getpid()}"
    files = remote.connect(address)
    if scheme != "gs":  # whose server begins with a bucket
        files.mkdir(address)
    for number, photo in enumerate(photos):
        files.pipe_file(f"{address}/in/{number:05}.png", encode(photo))

    def masks() -> np.ndarray:
        files.get(f"{address}/out/masks/", str(folder / "got") + "/", recursive=True)
        return read_all(folder / "got")

    return Packed(f"{address}/in", f"{address}/out", (), masks, len(photos))


KINDS: dict[str, Callable[[np.ndarray, Path], Packed]] = {
    "stacks": stacks,
    "ome-tiff": ome_tiff,
    "geotiff": geotiff,
    "ome-zarr": zarr_pyramids,
    "dicom": dicom,
    "zip": zipped,
    **{scheme: partial(in_a_bucket, scheme) for scheme in ("s3", "gs", "az")},
}
MANY = ("zip", "s3", "gs", "az")
USUAL = [kind for kind in KINDS if kind not in ("gs", "az")]


def encode(photo: np.ndarray) -> bytes:
    """A photo as PNG."""
    data = io.BytesIO()
    Image.fromarray(photo).save(data, "png", compress_level=1)
    return data.getvalue()


def local(folder: Path, files: int, *options: str) -> Packed:
    """What is run from a folder into another."""
    out = folder / "out"
    return Packed(str(folder / "in"), str(out), options, lambda: read_all(out / "masks"), files)


@contextmanager
def serving(scheme: str) -> Iterator[None]:
    """A server of buckets on this machine, that this process and its children talk to."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    os.environ["no_proxy"] = host = "127.0.0.1"
    with socket.create_server((host, 0)) as free:
        port = free.getsockname()[1]
    with ExitStack() as stack:
        if scheme == "s3":
            from moto.server import ThreadedMotoServer

            server = ThreadedMotoServer(host, port, verbose=False)
            server.start()
            stack.callback(server.stop)
            made_up = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "made-up")
            os.environ.update(
                AWS_ENDPOINT_URL=f"http://{host}:{port}", AWS_DEFAULT_REGION="us-east-1", **made_up
            )
        elif scheme == "gs":
            server = importlib.import_module("gcp_storage_emulator.server").create_server(
                host, port, True, f"photos-{os.getpid()}"
            )
            server.start()
            stack.callback(server.stop)
            os.environ.update(STORAGE_EMULATOR_HOST=f"http://{host}:{port}", FSSPEC_GS_TOKEN="anon")
            os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"  # asks by gRPC, which the server lacks
        else:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            places = ["--blobHost", host, "--blobPort", str(port), "--location", folder]
            command = ["azurite-blob", *places, "--silent", "--skipApiVersionCheck"]
            process = stack.enter_context(subprocess.Popen(command))
            stack.callback(process.terminate)
            while socket.socket().connect_ex((host, port)):
                time.sleep(0.1)
            os.environ["AZURE_STORAGE_CONNECTION_STRING"] = (
                f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT[0]};AccountKey={ACCOUNT[1]};"
                f"BlobEndpoint=http://{host}:{port}/{ACCOUNT[0]};"
            )
        yield


def made(packed: Packed) -> int:
    """How many files of masks are there."""
    if remote.is_remote(packed.output):
        files = remote.connect(packed.output)
        files.invalidate_cache()
        return len(files.find(f"{packed.output}/masks"))
    folders = os.walk(f"{packed.output}/masks")
    return sum(name.endswith((".png", ".tif")) for _, _, names in folders for name in names)


def segment(packed: Packed, model: str, kill_at: int = 0) -> dict[str, int]:
    """Run to the end, or kill it once so many files are there; what its report says of the items."""
    command = [sys.executable, "-m", "unet_batch", "run", packed.source, "-o", packed.output, "-m", model]
    with subprocess.Popen(
        [*command, "--json", *packed.options], stdout=subprocess.PIPE, text=True
    ) as process:
        while kill_at and process.poll() is None:
            if made(packed) >= kill_at:
                process.send_signal(signal.SIGKILL)
                process.wait()
                return {}
            time.sleep(0.02)
        text, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"{packed.source}: exit code {process.returncode}")
    return json.loads(text) if not kill_at else {}


def main() -> None:
    """Make, run, kill, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("kinds", nargs="*", default=USUAL, metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--photos", type=int, default=2000, help="of a ZIP and a bucket; others take 120")
    parser.add_argument("--model", default="fast")
    options = parser.parse_args()
    work: Path = options.work
    command = [sys.executable, "-m", "unet_batch", "sample", str(work / "drawn"), "--size", "160x240"]
    subprocess.run([*command, "--photos", str(options.photos)], check=True, stdout=subprocess.DEVNULL)
    (work / "png").mkdir(exist_ok=True)
    photos = np.stack([read(path) for path in sorted((work / "drawn" / "photos").glob("*.jpg"))])
    photos = np.maximum(photos, 1)
    photos[:, :50, :60] = 0  # where a GeoTIFF has no value
    for number, photo in enumerate(photos):
        (work / "png" / f"{number:05}.png").write_bytes(encode(photo))
    plain = local(work, len(photos))._replace(source=str(work / "png"))
    segment(plain, options.model)
    expected, differ = plain.masks(), False
    print(f"{len(photos)} photos as PNG: {(expected > 0).mean():.1%} marked")
    print("| source | pictures | files | killed at | done after that | masks that differ |")
    print("|---|---|---|---|---|---|")
    with ExitStack() as stack:
        for scheme in {"s3", "gs", "az"}.intersection(options.kinds):
            stack.enter_context(serving(scheme))
        for kind in options.kinds:
            folder = work / kind
            shutil.rmtree(folder, ignore_errors=True)
            (folder / "in").mkdir(parents=True)
            some = photos if kind in MANY else photos[:120]
            packed = KINDS[kind](some, folder)
            killed = []
            for share in (3, 1.5):
                segment(packed, options.model, max(1, int(packed.files / share)))
                killed.append(made(packed))
            report = segment(packed, options.model)
            found, right = packed.masks(), expected[: len(some)].copy()
            if packed.valueless is not None:
                right[packed.valueless] = 0
            wrong = len(right) if found.shape != right.shape else int((found != right).any((1, 2)).sum())
            differ |= wrong > 0
            print(
                f"| {kind} | {len(some)} | {packed.files} | {killed} | {report['done']} | {wrong} |",
                flush=True,
            )
    raise SystemExit(int(differ))


if __name__ == "__main__":
    main()
