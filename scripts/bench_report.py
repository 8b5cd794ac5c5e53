"""How long the page of a large run takes to open, scroll, filter and sort, in a real browser.

    python -m scripts.bench_report                              # 10,000 and 50,000 items
    python -m scripts.bench_report --items 1000 --keep DIR      # keeps the folders, to look at

Draws a few hundred photos and masks, links them under as many names as asked for, beside a manifest as a run
would have left it, makes the page, and opens it from the disk in headless Chromium. Needs Playwright and a
Chromium (`--chromium`, else the one of the system).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from unet_batch.files.atomic import write_json
from unet_batch.media import images
from unet_batch.review.report import write_report
from unet_batch.run.manifest import Manifest
from unet_batch.run.records import Identity, OutputRecipe, Record

DRAWN = 240
SIZE = (240, 360)
STATS = "class,pixels,share,components,confidence,entropy,unsure,unlike\n"


def draw(number: int, size: tuple[int, int] = SIZE) -> tuple[Any, Any, dict[str, float]]:
    """A photo of a blob, RGB uint8 (h, w, 3), its mask, and what a model may have said of it."""
    random, (height, width) = np.random.default_rng(number), size
    ground, colour = random.integers(40, 200, (2, 3))
    photo = np.empty((height, width, 3), np.uint8)
    photo[:] = ground * np.linspace(0.6, 1.2, height)[:, None, None]
    mask = np.zeros((height, width), np.uint8)
    for _ in range(1 + (number % 11 == 0) * 6):
        middle = (
            int(random.integers(width // 4, width * 3 // 4)),
            int(random.integers(height // 3, height * 2 // 3)),
        )
        axes = int(random.integers(width // 10, width // 4)), int(random.integers(height // 12, height // 4))
        cv2.ellipse(mask, middle, axes, float(random.integers(-20, 20)), 0, 360, 255, -1)
    photo[mask > 0] = colour
    photo = cv2.blur(photo, (3, 3)) + random.integers(0, 9, photo.shape, np.uint8)
    if number % 60 == 7:
        mask[:] = 0
    if number % 80 == 9:
        mask[:] = 255
    confidence = 0.6 if number % 50 == 3 else float(random.normal(0.985, 0.004))
    unlike = 1.6 if number % 70 == 5 else float(random.uniform(0.2, 0.8))
    return (
        photo,
        mask,
        {"confidence": min(confidence, 1.0), "unsure": 1 - min(confidence, 1.0), "unlike": unlike},
    )


def make_run(
    folder: Path, count: int, drawn: int = DRAWN, *, stats: bool = True, size: tuple[int, int] = SIZE
) -> Path:
    """Leave what a run over `count` photos leaves; return the output folder, `folder/out`."""
    scenes, photos, out = folder / "scenes", folder / "photos", folder / "out"
    for place in (scenes, photos, out):
        place.mkdir(parents=True, exist_ok=True)
    drawn = min(drawn, count)
    for number in range(drawn):
        photo, mask, said = draw(number, size)
        (scenes / f"{number}.jpg").write_bytes(images.encode_jpeg(photo))
        (scenes / f"{number}.png").write_bytes(images.encode_mask(mask))
        share = float(np.count_nonzero(mask)) / mask.size
        row = ("blob", np.count_nonzero(mask), share, int(share > 0), said["confidence"], 0.1, said["unsure"])
        (scenes / f"{number}.csv").write_text(STATS + ",".join(map(str, (*row, said["unlike"]))) + "\n")
    recipe, manifest = OutputRecipe({"bench": 1}, "drawn"), Manifest(str(out))
    kinds = {"mask": ("masks", ".png"), **({"stats": ("stats", ".csv")} if stats else {})}
    with manifest.writing(recipe):
        records = []
        for number in range(count):
            key = f"lot{number // 1000:03d}/photo_{number:06d}"
            source = photos / f"{key}.jpg"
            _link(scenes / f"{number % drawn}.jpg", source)
            files = {}
            for kind, (below, suffix) in kinds.items():
                _link(scenes / f"{number % drawn}{suffix}", out / below / f"{key}{suffix}")
                files[kind] = ((f"{below}/{key}{suffix}", 1),)
            identity = Identity.of(str(source), f"{key}.jpg")
            records.append(Record(key, "done", identity, recipe.digest, files, "fake", str(photos)))
        manifest.record(*records)
    failure = {
        "path": str(photos / "broken.jpg"),
        "stage": "decode",
        "error": "ImageError",
        "hint": "leave it out",
    }
    (out / "errors.jsonl").write_text(
        json.dumps({**failure, "message": f"{failure['path']}: cut short"}) + "\n"
    )
    write_json(str(out / "run.json"), _report(count, out))
    return out


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # a file system without links, or with a limit to them
        shutil.copyfile(source, target)


def _report(count: int, out: Path) -> dict[str, Any]:
    return {
        "unet_batch": "0", "status": "done", "output": str(out), "sources": ["photos"],
        "save": ["mask", "stats"],
        "model": {"name": "drawn", "classes": ["blob"], "colours": [[200, 40, 255]], "sha256": "0" * 64},
        "backend": {"name": "fake", "precision": "float32"}, "found": count, "done": count, "skipped": 0,
        "failed": 1, "seconds": 60.0, "images_per_second": count / 60, "bottleneck": "infer",
    }  # fmt: skip


PAINTED = """() => new Promise(done => {
  const look = () => {
    const shown = [...document.querySelectorAll(".cell img.photo")].filter(image => image.naturalWidth);
    if (shown.length) requestAnimationFrame(() => done(performance.now())); else requestAnimationFrame(look);
  };
  look();
})"""
SCROLL = """() => new Promise(done => {
  const grid = document.getElementById("grid"), gaps = [];
  let last = performance.now(), steps = 0;
  const step = now => {
    gaps.push(now - last);
    last = now;
    grid.scrollTop += grid.clientHeight * .4;
    if (++steps < 90) requestAnimationFrame(step); else done(gaps.slice(1));
  };
  requestAnimationFrame(step);
})"""
SORT = """name => { const begun = performance.now(), sort = document.getElementById("sort");
  sort.value = name; sort.dispatchEvent(new Event("change")); return performance.now() - begun; }"""


def measure(page_file: Path, chromium: str, rounds: int) -> dict[str, float]:
    """Medians: milliseconds from navigation to painted thumbnails, of frames while scrolling, to sort."""
    from playwright.sync_api import sync_playwright

    opened, frames, slow, sorting = [], [], [], []
    with sync_playwright() as playwright:
        for _ in range(rounds):
            browser = playwright.chromium.launch(executable_path=chromium or None, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            page.goto(page_file.as_uri(), wait_until="commit")
            opened.append(page.evaluate(PAINTED))
            gaps = page.evaluate(SCROLL)
            frames.append(statistics.median(gaps))
            slow.append(statistics.quantiles(gaps, n=20)[-1])
            sorting.append(page.evaluate(SORT, "share"))
            browser.close()
    return {
        "painted_ms": round(statistics.median(opened)), "frame_ms": round(statistics.median(frames), 1),
        "frame_ms_95": round(statistics.median(slow), 1), "sort_ms": round(statistics.median(sorting)),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, nargs="+", default=[10_000, 50_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="make the folders here, and leave them")
    parser.add_argument("--chromium", default=shutil.which("chromium") or "")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        for count in arguments.items:
            out = make_run((arguments.keep or Path(temporary)) / str(count), count)
            begun = time.perf_counter()
            made = write_report(str(out))
            seconds = time.perf_counter() - begun
            begun = time.perf_counter()
            write_report(str(out))
            again = time.perf_counter() - begun
            size = sum(path.stat().st_size for path in (out / "report").rglob("*") if path.is_file())
            figures = measure(Path(made.page), arguments.chromium, arguments.rounds)
            print(json.dumps({"items": count, "made_s": round(seconds, 1), "again_s": round(again, 1),
                              "megabytes": round(size / 1e6), **figures}), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
