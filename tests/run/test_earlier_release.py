"""A folder that version 0.1.0 has written is understood: nothing is redone, and nothing is refused.

`tests/data/run_0_1_0.json` holds all files of such a run, made by that version with the command it names:
three drawn pictures and one clip that were done, and an empty file that failed.
"""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from unet_batch.cli import main

STORED = Path(__file__).parents[1] / "data" / "run_0_1_0.json"
COMMAND = (
    "run",
    "photos",
    "-m",
    "tiny.safetensors",
    "--overlay",
    "-o",
    "out",
    "--backend",
    "torch",
    "--json",
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files as they were, in another place than they were made in; the working directory."""
    for name, stored in json.loads(STORED.read_text(encoding="utf-8"))["files"].items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = (
            "\n".join(stored["lines"]).encode() if "lines" in stored else base64.b64decode(stored["base64"])
        )
        path.write_bytes(lines)
        if "mtime" in stored:
            os.utime(path, (stored["mtime"], stored["mtime"]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*more: str) -> Result:
    return CliRunner().invoke(main, [*COMMAND, *more])


def outputs(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Contents and time of each output, without what a run says of itself."""
    files = (path for path in (folder / "out").rglob("*") if path.is_file() and path.parent != folder / "out")
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_nothing_is_redone_but_what_had_failed(folder: Path) -> None:
    before = outputs(folder)
    assert len(before) == 9

    done = run()

    assert done.exit_code == 1, done.output  # the empty file is tried again, and is empty
    report = json.loads(done.stdout)
    assert report["states"] == {"done": 4, "failed": 1}
    assert (report["skipped"], report["done"], report["failed"]) == (4, 0, 1)
    assert outputs(folder) == before


def test_what_is_lost_or_repaired_joins_it(folder: Path) -> None:
    (folder / "out/masks/b.png").unlink()
    (folder / "photos/empty.png").write_bytes((folder / "photos/a.png").read_bytes())

    done = run()

    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["states"] == {"done": 3, "lost": 1, "failed": 1}


def test_another_recipe_is_refused_by_its_name(folder: Path) -> None:
    done = run("--threshold", "0.3")

    assert done.exit_code == 2
    assert "4 items by model tiny (sha256 d80ab54ecb11), threshold 0.5, 16x24" in " ".join(
        done.stderr.split()
    )


def test_its_report_vouches_for_pictures_without_a_manifest(folder: Path) -> None:
    """As for outputs that are older than manifests are: run.json tells who made them."""
    (folder / "out/manifest.jsonl").unlink()
    (folder / "photos/clip.mp4").unlink()
    before = outputs(folder)

    done = run()

    assert done.exit_code == 1, done.output
    assert json.loads(done.stdout)["states"] == {"adopted": 3, "new": 1}
    assert outputs(folder) == before
