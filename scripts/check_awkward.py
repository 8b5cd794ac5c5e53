"""Whether odd picture files end as masks of the right size, orientation and range.

    python -m scripts.check_awkward [FOLDER ...] [--all]

Every file below the folders that Pillow or tifffile opens goes through a network that says how bright each
pixel is. The mask must be as large as these say the upright picture is, hold 0 and 255 alone, and the picture
must be brighter where theirs is: its correlation with theirs has to be above 0.9, and no turned or mirrored
one's higher; of few levels, no pixel may be darker than one that is darker there. Prints a table of what
differs from either program or is refused, with `--all` of every file. Exits with 1 where a picture differs
from both.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import tifffile
from PIL import Image, ImageOps
from tifffile import TiffPage

from scripts import carvana
from unet_batch.errors import UnetBatchError
from unet_batch.inference.result import Result
from unet_batch.inference.segmenter import Segmenter
from unet_batch.testing import FakeBackend, fake_spec

SMALL = (48, 48)
FEW = 16  # levels of grey
ALIKE = 0.9


class Known(NamedTuple):
    """What another program says of a picture.

    Attributes:
        by: its name.
        size: (height, width), upright.
        grey: float (height, width), upright; None where it opens the file and cannot decode it.
    """

    by: str
    size: tuple[int, int]
    grey: np.ndarray | None


def by_pillow(path: Path) -> Known | None:
    """What Pillow says; None where it does not open the file."""
    try:
        with Image.open(path) as file:
            size = (file.height, file.width)
            try:
                turned = ImageOps.exif_transpose(file)
                if turned.mode[0] in "IF":
                    pixels = np.asarray(turned, np.float64)
                    clear = turned.info.get("transparency")
                    pixels = np.where(pixels == clear, 65535, pixels)
                else:  # over white, as transparent pictures are read
                    rgba = np.asarray(turned.convert("RGBA"), np.float64)
                    pixels = 255 + (rgba[..., :3].mean(2) - 255) * rgba[..., 3] / 255
            except (OSError, ValueError, SyntaxError):
                return Known("Pillow, its header", size, None)
            return Known("Pillow", (turned.height, turned.width), pixels)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def by_tifffile(path: Path) -> Known | None:
    """What tifffile says of the first page that is no thumbnail; None where it does not open the file."""
    try:
        with tifffile.TiffFile(path) as file:
            page = next(page for page in file.pages if isinstance(page, TiffPage) and not page.is_reduced)
            values = np.asarray(page.asarray(), np.float64)
            values[values == page.nodata] = np.nan
            if page.axes.startswith("S"):
                values = np.moveaxis(values, 0, -1)
            if values.ndim > 2:
                values = values[..., :3].mean(2)
            tag = page.tags.get(274)
            turns = int(tag.value) if tag is not None else 1
            image = values if turns == 1 else upright(values, turns)
            return Known("tifffile", (image.shape[0], image.shape[1]), image)
    except Exception:  # noqa: BLE001 - whatever it meets, it does not read the file
        return None


def upright(values: np.ndarray, orientation: int) -> np.ndarray:
    """As EXIF's orientations 2 to 8 say."""
    mirrored = orientation in (2, 4, 5, 7)
    quarters = {3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}.get(orientation, 0)
    return np.rot90(values[:, ::-1] if mirrored else values, quarters)


def difference(found: np.ndarray, known: np.ndarray) -> str:
    """How our picture, grey (h, w), differs from a known one; "" where it does not."""
    known = np.where(np.isfinite(known), known, np.nan)
    known = np.nan_to_num(known, nan=float(np.nanmin(known)) if np.isfinite(known).any() else 0.0)
    ours, theirs = (
        cv2.resize(each.astype(np.float64), SMALL, interpolation=cv2.INTER_AREA) for each in (found, known)
    )
    if ours.std() < 1e-9 or theirs.std() < 1e-9:
        return "" if (ours.std() < 1e-9) == (theirs.std() < 1e-9) else "one is constant"
    likeness = {
        (quarters, mirrored): np.corrcoef(ours.ravel(), np.rot90(turned, quarters).ravel())[0, 1]
        for mirrored, turned in ((False, theirs), (True, theirs[:, ::-1]))
        for quarters in range(4)
    }
    order = np.argsort(known, axis=None)
    if (
        len(np.unique(found)) < FEW
        and known.shape == found.shape
        and (np.diff(found.ravel()[order]) >= 0).all()
    ):
        return ""
    straight = likeness[0, False]
    best = max(likeness, key=lambda turn: likeness[turn])
    if likeness[best] > straight + 0.01:
        return f"turned by {best[0]} quarters{', mirrored' if best[1] else ''}"
    return "" if straight > ALIKE else f"brightness correlates by {straight:.2f} only"


def judge(result: Result, known: Known) -> str:
    """What is wrong with the mask of a picture; "" where nothing is."""
    assert result.prediction is not None
    mask, pixels = result.mask, result.prediction.frame.source_pixels
    assert mask is not None
    if mask.shape != known.size:
        return f"{mask.shape[0]}x{mask.shape[1]} instead of {known.size[0]}x{known.size[1]}"
    if not np.isin(mask, (0, 255)).all():
        return "values beside 0 and 255"
    return "" if known.grey is None else difference(pixels.mean(2), known.grey)


def dark(result: Result, known: Known) -> str:
    """How many levels are left of a picture; "" where it keeps FEW or all."""
    assert result.prediction is not None
    left = len(np.unique(result.prediction.frame.source_pixels.mean(2)))
    there = 0 if known.grey is None else len(np.unique(known.grey))
    return f"{left} levels of {there}: it is dark" if left < min(FEW, there) else ""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = carvana.data_folder()
    parser.add_argument("folders", nargs="*", type=Path, default=[data / "awkward", data.parent / "cases"])
    parser.add_argument("--all", action="store_true", help="list every file")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    files = [path for folder in options.folders for path in sorted(folder.rglob("*")) if path.is_file()]
    rows, differ = [], 0
    with Segmenter(FakeBackend(fake_spec(SMALL)), workers=1) as segmenter:
        for path in files:
            found = [known for known in (by_pillow(path), by_tifffile(path)) if known is not None]
            if not found:
                continue
            openers = ", ".join(known.by for known in found)
            size = f"{found[-1].size[0]}x{found[-1].size[1]}"
            try:
                result = segmenter.predict(str(path))
                wrongs = {known.by: judge(result, known) for known in found}
                fine = not all(wrongs.values())  # one that misreads it is no judge
                said = "; ".join(f"{wrong} (by {by})" for by, wrong in wrongs.items() if wrong)
                said = said or dark(result, found[-1])
                differ += not fine
            except UnetBatchError as error:
                fine, said = False, f"refused: {error.message.removeprefix(f'{path}: ')}"
            rows.append((path.name, openers, size, said or "as it is", fine))
    print("| file | opened by | size | here |\n|---|---|---|---|")
    for *cells, fine in rows:
        if options.all or not fine or cells[-1] != "as it is":
            print(f"| {' | '.join(cells)} |")
    whole = sum(row[-1] for row in rows)
    print(
        f"\n{len(files)} files, {len(rows)} of them pictures: {whole} as they are, {differ} differ, "
        f"{len(rows) - whole - differ} refused"
    )
    raise SystemExit(int(differ > 0))


if __name__ == "__main__":
    main()
