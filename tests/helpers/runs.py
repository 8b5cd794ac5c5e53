"""A run with a model whose right answer is known, and what it left."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.helpers.models import fake_file
from tests.helpers.observers import observing
from tests.helpers.waiting import PATIENCE, until
from unet_batch.inference.backends.base import Backend
from unet_batch.inference.segmenter import Segmenter
from unet_batch.inference.views import ViewOptions
from unet_batch.run.execute import execute
from unet_batch.run.manifest import Manifest
from unet_batch.run.options import RunOptions
from unet_batch.run.plan import prepare
from unet_batch.run.report import RunReport
from unet_batch.testing import FakeBackend


def half_bright(height: int = 64, width: int = 96) -> np.ndarray:
    """Black, its right half white."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[:, width // 2 :] = 255
    return picture


def write(path: Path, picture: np.ndarray, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, **options)


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.mode in ("L", "RGB", "RGBA", "I;16")
        return np.array(image)


def segment(
    *sources: Path,
    output: Path | None = None,
    backend: Backend | None = None,
    view: ViewOptions | None = None,
    **options: Any,
) -> tuple[RunReport, list[str]]:
    heard: list[str] = []
    plan = prepare(RunOptions(tuple(map(str, sources)), str(output) if output else None, **options))
    with Segmenter(backend or FakeBackend(), workers=2, view=view) as segmenter:
        observer = observing(outcome=lambda item, failure: heard.append(item.key))
        report = execute(plan, segmenter, observer)
    return report, heard


def files(folder: Path) -> list[str]:
    """What a person sees: hidden files, such as the lock, left out."""
    paths = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return sorted(str(path.relative_to(folder)) for path in paths)


def segment_folder(folder: str, out: str, options: dict[str, Any]) -> None:
    """A run with a fake network, in a process of its own."""
    plan = prepare(RunOptions((folder,), out, **options))
    with Segmenter(FakeBackend(), model=fake_file(), workers=2) as segmenter:
        report = execute(plan, segmenter)
    raise SystemExit(report.exit_code)


def kill_and_resume(source: Path, out: Path, options: dict[str, Any]) -> None:
    """Kill a run once it has written a mask, and let another one do what is left."""
    from tests.helpers.processes import Forked

    child = Forked(segment_folder, str(source), str(out), options)
    until(lambda: any((out / "masks").rglob("[!.]*.*")))
    child.kill()
    child.wait()
    child = Forked(segment_folder, str(source), str(out), options)
    assert child.wait(PATIENCE) == 0


def many(folder: Path, count: int) -> Path:
    """Small pictures, each with a mask of its own."""
    for index in range(count):
        picture = np.zeros((8, 12, 3), np.uint8)
        picture[: 1 + index % 8, : 1 + index // 8 % 12] = 255
        write(folder / f"{index % 3}/{index:03}.png", picture)
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    """What does not depend on when it was made: the outputs, and the manifest by key."""
    found = {name: (folder / name).read_bytes() for name in files(folder) if "/" in name}
    for key, record in Manifest(str(folder)).records.items():
        values = json.loads(record.line())
        del values["at"]
        values.pop("root", None)
        found[f"manifest: {key}"] = json.dumps(values, sort_keys=True).encode()
    return found


def done_lines(folder: Path) -> Counter[str]:
    """How often each key was recorded as done, over all manifests."""
    lines = [line for path in folder.glob("manifest*.jsonl") for line in path.read_bytes().split(b"\n")]
    found = Counter()
    for line in lines:
        if line.endswith(b"}"):
            values = json.loads(line)
            found[values.get("key")] += values.get("status") == "done"
    return +found
