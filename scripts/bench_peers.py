"""Measure `unet-batch run` against what a user would otherwise pick: same photos, same network, masks only.

    python -m scripts.bench_peers [--photos 40] [--rounds 3] [--engine-dir DIR ...]
        [--milesial CHECKOUT --milesial-weights FILE] [--rembg-model FILE.onnx]

Ours: PyTorch, and every engine of OpenVINO for the network that lies in a folder named by `--engine-dir`
(without one, float32 is built). The others are whole programs (`scripts/peer_loops.py`): the usual loop, the
same under torch.compile, ONNX Runtime, OpenVINO with AsyncInferQueue, which runs our engines' networks, too.
milesial's predict.py and rembg run their own networks, from files that are given.

Everyone is a process that writes masks of the photos' own size. Dice against the masks of our PyTorch run
says whether it is the same work. Rounds alternate. Start-up (imports, loading, compiling) is told apart: what
counts begins when a process says that its network is loaded; milesial's does not, so its start-up is in it.

Two figures each: seconds by the clock, and processor seconds (user and system, of the process and what it has
started). On a machine with other work only the second compares. The floor is the processor seconds divided by
the cores: the clock can show no less, as no stage runs anywhere but on them. wall / floor says what is idle.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil

from scripts import carvana
from unet_batch.engine import store
from unet_batch.model import checkpoint, zoo
from unet_batch.pipeline import cpu_count

ROOT = Path(__file__).resolve().parents[1]
STARTED = '"event": "start"'
RATIO = "times ours"


@dataclass
class Contestant:
    """A program, and what was measured of it.

    Attributes:
        name: for the table.
        command: what to run, given the file that lists the photos and a folder for the masks.
        masks: where below that folder they are.
        says_start: it prints a line when its network is loaded.
        ours: it is this program.
        missing: why it cannot run here; "" where it can.
        wall, cpu: seconds of each round, start-up left out; `startup` is the processor's.
        dice: of its masks against ours, pooled over the photos, and of the worst photo.
    """

    name: str
    command: Callable[[str, str], list[str]] = lambda listed, out: []
    masks: str = ""
    says_start: bool = True
    ours: bool = False
    missing: str = ""
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    startup: list[float] = field(default_factory=list)
    dice: tuple[float, float] = (0.0, 0.0)

    def run(self, listed: str, out: str) -> bool:
        """One round, in a process of its own; one that fails takes no further part, and False is returned."""
        startup = 0.0
        with tempfile.TemporaryFile() as said:
            begun, before = time.perf_counter(), _children_seconds()
            command = self.command(listed, out)
            with psutil.Popen(command, stdout=subprocess.PIPE, stderr=said, cwd=ROOT, text=True) as process:
                assert process.stdout is not None
                for line in process.stdout:
                    if self.says_start and STARTED in line:
                        begun, startup = time.perf_counter(), _tree_seconds(process)
                code = process.wait()
            wall, cpu = time.perf_counter() - begun, _children_seconds() - before
            if code:
                said.seek(0)
                self.missing = f"ended with {code} {said.read().decode(errors='replace').strip()[-200:]}"
                return False
        self.wall.append(wall)
        self.cpu.append(cpu - startup)
        self.startup.append(startup)
        return True


def _children_seconds() -> float:
    """Processor seconds of all processes that have ended and were waited for, with what they started."""
    times = os.times()
    return times.children_user + times.children_system


def _tree_seconds(process: Any) -> float:
    """Processor seconds of a process that runs, and of its children."""
    times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return float(sum(each.user + each.system for each in times))


# Who takes part --------------------------------------------------------------------------------------------


def ours(model: str, backend: str, engines: str, label: str) -> Contestant:
    """`unet-batch run` on the CPU."""

    def command(listed: str, out: str) -> list[str]:
        words = [sys.executable, "-m", "unet_batch", "run", f"@{listed}", "-m", model, "-o", out]
        return [*words, "--backend", backend, "--device", "cpu", "--engines-dir", engines, "--log-json", "-"]

    return Contestant(f"unet-batch run, {label}", command, "masks", ours=True)


def loop(kind: str, network: str, label: str, missing: str = "") -> Contestant:
    """One of `peer_loops`."""

    def command(listed: str, out: str) -> list[str]:
        return [sys.executable, "-m", "scripts.peer_loops", kind, network, listed, out]

    return Contestant(label, command, missing=missing)


def milesial(checkout: str, weights: str, photos: Sequence[str]) -> Contestant:
    """predict.py of a checkout, with its own network."""

    def command(listed: str, out: str) -> list[str]:
        masks = [os.path.join(out, Path(photo).stem + ".png") for photo in photos]
        script = os.path.join(checkout, "predict.py")
        return [sys.executable, script, "--model", weights, "--input", *photos, "--output", *masks]

    missing = "" if checkout and weights else "no --milesial and --milesial-weights"
    if not missing and not os.path.isfile(os.path.join(checkout, "predict.py")):
        missing = f"no predict.py in {checkout}"
    return Contestant("milesial's predict.py, its own network", command, says_start=False, missing=missing)


def no_compiler() -> str:
    """Why torch.compile cannot work here; "" where it can."""
    names = ("g++", "clang++", "cl")
    return "" if any(map(shutil.which, names)) else f"no compiler for C++ ({', '.join(names)})"


def build(model: str, folder: str, *options: str) -> None:
    """Run build-engine."""
    words = [sys.executable, "-m", "unet_batch", "build-engine", model, "--engines-dir", folder, *options]
    subprocess.run(words, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def engines_of(folders: Sequence[str], sha256: str, work: str) -> list[tuple[str, str, str]]:
    """Precision, plan and a folder of its own of every engine of OpenVINO for a checkpoint."""
    found: list[tuple[str, str, str]] = []
    for folder in folders:
        for engine in store.list_engines(folder)[0]:
            recipe = engine.sidecar.recipe
            if recipe.on_cpu and recipe.source_sha256 == sha256:
                alone = os.path.join(work, f"engine-{len(found)}")  # or `run` takes the fastest of the folder
                stem = os.path.splitext(engine.path)[0]
                os.makedirs(alone)
                for suffix in (".plan", ".json", ".npz"):
                    shutil.copy(stem + suffix, alone)
                found.append((recipe.precision, engine.path, alone))
    return found


def graph_of(model: str, sha256: str, folders: Sequence[str], work: str) -> str:
    """The ONNX graph in float32 of a checkpoint: one beside its engines, else it is exported."""
    name = f"*-fp32-{sha256[:8]}.onnx"
    found = [path for folder in folders for path in Path(folder).glob(name)]
    if not found:
        build(model, work, "--onnx-only", "--precision", "fp32")
        found = [*Path(work).glob(name)]
    return str(found[0])


def contestants(options: argparse.Namespace, photos: Sequence[str], work: str) -> list[Contestant]:
    """Everyone who can take part, and who cannot."""
    file = checkpoint.identify(zoo.resolve(options.model))
    folders = options.engine_dir
    if not folders:
        folders = [os.path.join(work, "built")]
        build(options.model, folders[0], "--builder", "openvino", "--precision", "fp32")
    graph = graph_of(options.model, file.sha256, folders, work)
    engines = engines_of(folders, file.sha256, work)
    rembg = options.rembg_model
    return [
        ours(options.model, "torch", work, "PyTorch"),
        *(ours(options.model, "openvino", alone, f"OpenVINO {precision}") for precision, _, alone in engines),
        loop("usual", file.path, "the usual loop: OpenCV, eager PyTorch"),
        loop("torch-compile", file.path, "the same under torch.compile", no_compiler()),
        loop("onnxruntime", graph, "ONNX Runtime, OpenCV"),
        loop("openvino", graph, "OpenVINO f32, AsyncInferQueue, OpenCV"),
        *(
            loop("openvino", plan, f"OpenVINO {precision}, AsyncInferQueue, OpenCV")
            for precision, plan, _ in engines
            if precision != "fp32"
        ),
        milesial(options.milesial, options.milesial_weights, photos),
        loop("rembg", rembg, "rembg, its own network", "" if rembg else "no --rembg-model"),
    ]


# What comes out ---------------------------------------------------------------------------------------------


def dice(photos: Sequence[str], ours: str, theirs: str) -> tuple[float, float]:
    """Dice of masks against others, pooled over all pixels, and of the worst photo."""
    both: list[tuple[int, int]] = []
    for photo in photos:
        name = Path(photo).stem + ".png"
        one, other = (cv2.imread(os.path.join(folder, name), 0) for folder in (ours, theirs))
        if one is None or other is None or one.shape != other.shape:
            raise SystemExit(f"{theirs}: no mask of {photo} at its size")
        a, b = one > 127, other > 127
        both.append((2 * int(np.count_nonzero(a & b)), int(np.count_nonzero(a)) + int(np.count_nonzero(b))))
    pooled = sum(same for same, _ in both) / max(1, sum(total for _, total in both))
    return pooled, min(same / total if total else 1.0 for same, total in both)


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """Median, least and most of the rounds' ratios, theirs to ours."""
    each = [b / a for a, b in zip(ours, theirs, strict=False)]
    return statistics.median(each), min(each), max(each)


def table(entered: Sequence[Contestant], photos: int, cores: int) -> str:
    """Markdown: everyone beside the one of ours that takes the processor least, by that and by the clock."""
    measured = [each for each in entered if each.ours and not each.missing]
    best = min(measured, key=lambda each: statistics.median(each.cpu), default=entered[0])
    lines = [
        f"| program | processor, ms a photo | {RATIO} | by the clock, photos/s | {RATIO} | wall / floor "
        "| start-up, processor s | Dice, worst photo |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for each in entered:
        if each.missing:
            lines.append(f"| {each.name} | not run: {each.missing} | | | | | | |")
            continue
        by_cpu, by_wall = (
            "{:.2f} ({:.2f} to {:.2f})".format(*ratios(mine, theirs)) if each is not best else "1"
            for mine, theirs in ((best.cpu, each.cpu), (best.wall, each.wall))
        )
        idle = statistics.median(wall * cores / cpu for wall, cpu in zip(each.wall, each.cpu, strict=True))
        lines.append(
            f"| {each.name} | {1e3 * statistics.median(each.cpu) / photos:.0f} | {by_cpu} | "
            f"{photos / statistics.median(each.wall):.2f} | {by_wall} | {idle:.2f} | "
            f"{statistics.median(each.startup):.1f} | {each.dice[0]:.4f}, {each.dice[1]:.4f} |"
        )
    return "\n".join(lines)


def measure(options: argparse.Namespace, work: str) -> tuple[list[Contestant], list[str]]:
    """All rounds."""
    photos = [str(photo.image) for photo in carvana.split(carvana.photos())[1][:: options.every]]
    photos = photos[: options.photos]
    listed = os.path.join(work, "photos.txt")
    Path(listed).write_text("".join(f"{photo}\n" for photo in photos), encoding="utf-8")
    for photo in photos:
        Path(photo).read_bytes()  # into the page cache
    entered = contestants(options, photos, work)
    for number in range(options.rounds):
        for index, each in enumerate(entered):
            if each.missing:
                continue
            out = os.path.join(work, f"{number}-{index}")
            os.makedirs(out)
            if not each.run(listed, out):
                print(f"round {number + 1}: {each.name}: {each.missing}", file=sys.stderr)
                continue
            print(f"round {number + 1}: {each.name}: {each.cpu[-1]:.1f} s of the processor", file=sys.stderr)
            if number == 0:
                masks = os.path.join(work, f"0-{index}", each.masks)
                each.dice = dice(photos, os.path.join(work, "0-0", entered[0].masks), masks)
            else:
                shutil.rmtree(out)
    return entered, photos


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="default", help="a bundled model or a checkpoint of one class")
    parser.add_argument("--photos", type=int, default=40, help="of Carvana's cars that no training has seen")
    parser.add_argument("--every", type=int, default=1, help="take each Nth of them: more cars")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engine-dir", action="append", default=[], help="where engines of OpenVINO are")
    parser.add_argument("--milesial", default="", help="a checkout of milesial/Pytorch-UNet")
    parser.add_argument("--milesial-weights", default="", help="its weights")
    parser.add_argument("--rembg-model", default="", help="an ONNX file for rembg's u2net_custom")
    parser.add_argument("--json", help="also write the figures here")
    options = parser.parse_args()
    if min(options.photos, options.rounds, options.every) < 1:
        parser.error("--photos, --rounds and --every are at least 1")
    with tempfile.TemporaryDirectory() as work:
        entered, photos = measure(options, work)
    print(f"{len(photos)} photos, {options.rounds} rounds, {cpu_count()} cores, {platform.machine()}\n")
    print(table(entered, len(photos), cpu_count()))
    if options.json:
        figures = [{k: v for k, v in vars(each).items() if k != "command"} for each in entered]
        Path(options.json).write_text(json.dumps({"photos": photos, "programs": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
