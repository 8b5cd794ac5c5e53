"""`report`, and `run --report`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from click.testing import CliRunner

from scripts.bench_report import make_run
from tests.helpers.runs import half_bright, write
from unet_batch.cli import main


def test_a_page_is_made_and_says_what_to_look_at(tmp_path: Path) -> None:
    out = make_run(tmp_path, 90, 90)
    done = CliRunner().invoke(main, ["report", str(out)])
    assert done.exit_code == 0, done.output
    words = " ".join(done.output.split())
    assert "90 items, 90 new or changed" in words
    assert "nothing marked" in words
    assert "low confidence" in words
    assert (out / "report.html").exists()
    again = CliRunner().invoke(main, ["report", str(out), "-q"])
    assert (again.exit_code, again.output) == (0, "")


def test_a_folder_of_no_run_is_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["report", str(tmp_path)])
    assert done.exit_code == 2
    assert "no outputs of a run" in done.output


def test_a_run_makes_the_page_of_what_it_saves(tmp_path: Path, tiny: str) -> None:
    write(tmp_path / "photos/a.png", half_bright())
    write(tmp_path / "photos/b.png", np.zeros((64, 96, 3), np.uint8))
    out = tmp_path / "out"
    command = ["run", str(tmp_path / "photos"), "-o", str(out), "-m", tiny, "--save", "prob", "--report"]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    assert "2 items" in done.output
    facts = json.loads((out / "report/facts.js").read_text().split("(", 1)[1].rstrip(")\n"))
    told = dict(map(tuple, facts["run"]))
    assert told["Command"].endswith(f"run {tmp_path}/photos -o {out} -m {tiny} --save prob --report")
    assert "mask" in told["Saved"]


def test_a_page_that_could_not_show_everything_is_refused_before_the_work(tmp_path: Path) -> None:
    write(tmp_path / "a.png", half_bright())
    for more in (["--shard", "1/2"], ["-o", "s3://bucket/out"], ["-o", "-"]):
        done = CliRunner().invoke(main, ["run", str(tmp_path / "a.png"), "--report", *more])
        assert done.exit_code == 2
        assert "--report" in done.output
