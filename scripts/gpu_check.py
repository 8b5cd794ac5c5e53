"""Run everything that needs a GPU, and write down what came of it: `OUT/gpu_check.json` and tables in
`OUT/gpu_check.md`.

    python scripts/gpu_check.py -o OUT                  # everything, about 13 minutes on a fast GPU
    python scripts/gpu_check.py -o OUT --quick          # under 5 minutes
    python scripts/gpu_check.py -o OUT --only 'training*' --only 'clip*'    # the trainer and video alone
    python scripts/gpu_check.py --dry-run               # what would run, and with what; needs no GPU
    python scripts/gpu_check.py --export DIR            # ONNX files for a Python without PyTorch; needs no GPU
    python scripts/gpu_check.py -o OUT --onnx DIR       # there: TensorRT and PyCUDA alone, 8.6 included
    python scripts/gpu_check.py --merge A.json B.json   # one Markdown of several runs

Every section runs in a process of its own and the JSON is written after each, so that a crash, a hang or a
machine that goes away costs no more than the section it happens in. Nothing is left behind but the two files;
`--work DIR` keeps models and engines for another run, and `--only 'throughput*'` picks sections by name.

Exit status: 0 everything fine, 1 a section failed, 2 nothing could be run.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import _gpu_check_clips as clips
import _gpu_check_report as report
import _gpu_check_sections as sections
import _gpu_check_torch as with_torch
import _gpu_check_training as training

from unet_batch import gpu
from unet_batch.engine import flavours
from unet_batch.errors import UnetBatchError
from unet_batch.files.atomic import make_folder, write_atomic
from unet_batch.pipeline import cpu_count

TAIL = 25  # lines of a process that did not end well
LIBRARIES = ("torch", "pycuda", "cuda-bindings", "numpy", "onnx", "onnxruntime", "opencv-python-headless")
_MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}


@dataclass(frozen=True)
class Section:
    """One process.

    Attributes:
        name: unique.
        function: of one of the `_gpu_check_*` that have `FUNCTIONS`.
        seconds: after which it is killed.
        arguments: for the function.
        skip: why it is not worth starting; empty if it is.
    """

    name: str
    function: str
    seconds: float
    arguments: dict[str, Any] = field(default_factory=dict)
    skip: str = ""


def plan(options: argparse.Namespace, work: str) -> list[Section]:
    """The sections in their order: the quick proofs first, so that a run that is cut off has them."""
    quick, onnx, names = options.quick, options.onnx, options.models
    # Libraries only: whether they work, and which version they are, each section finds out in its own
    # process.
    builders = [name for name in flavours.NAMES if sections.present(_MODULES[name])]
    engines, models, pictures = (os.path.join(work, name) for name in ("engines", "models", "photos"))
    models = onnx or models
    rounds, batches = (3, 100) if quick else (5, 200)
    repeat = {"models": models, "rounds": rounds, "batches": batches}
    missing = {name: f"{name} is not installed" for name in flavours.NAMES if name not in builders}
    # Drawing the pictures of a proof takes the codecs, too.
    no_torch = "not with --onnx" if onnx else lacking("torch", "simplejpeg", "PIL", "cv2")
    found = [
        Section("environment", "environment", 120),
        Section("tests", "tests", 160, {"seconds": 150}, "not with --onnx" if onnx else ""),
        Section("models", "models", 150, {"names": names, "folder": models, "flavours": builders}, no_torch),
    ]

    def build(builder: str, model: str, *sizes: tuple[int, int, int]) -> Section:
        arguments = {
            "flavour": builder,
            "model": model,
            "batches": sizes,
            "folder": models,
            "engines": engines,
        }
        arguments["from_checkpoint"] = not no_torch and model == "bundled"
        name = f"build {builder} {model}" + ("" if len(sizes) == 1 else " in other batches")
        return Section(name, "build", 120 * len(sizes), arguments, missing.get(builder, ""))

    found += [build(builder, model, (1, 32, 32)) for builder in flavours.NAMES for model in names]
    for builder in flavours.NAMES:
        base, reason = {"flavour": builder, "engines": engines}, missing.get(builder, "")
        for provider in sections.PROVIDERS:
            absent = reason or ("" if sections.present(provider) else f"{provider} is not installed")
            found.append(
                Section(f"buffers {builder} {provider}", "buffers", 90, base | {"provider": provider}, absent)
            )
        speed = base | {**repeat, "sizes": [32]}
        found.append(Section(f"throughput {builder}", "throughput", 150, speed, reason))
    found.append(Section("throughput torch", "torch_speed", 120, {"names": names, **repeat}, no_torch))
    for builder in flavours.NAMES:
        for provider in sections.PROVIDERS:
            absent = missing.get(builder) or (
                "" if sections.present(provider) else f"{provider} is not installed"
            )
            arguments = {
                "flavour": builder,
                "engines": engines,
                "provider": provider,
                "batches": options.batches,
            }
            found.append(Section(f"memory {builder} {provider}", "memory_growth", 90, arguments, absent))
    drawn = {"folder": pictures, "drawn": 32 if quick else 96, "items": 400 if quick else 1500}
    found.append(Section("photos", "photos", 120, drawn, no_torch))
    for model in names[:1] if quick else [name for name in names if name != "4class"]:
        arguments = {
            "model": model,
            "models": models,
            "folder": pictures,
            "engines": engines,
            "flavours": builders,
        }
        found.append(Section(f"run {model}", "end_to_end", 120, arguments | {"rounds": rounds}, no_torch))
    for builder in flavours.NAMES:
        arguments = {"flavour": builder, "engines": engines}
        found.append(
            Section(f"out of memory {builder}", "out_of_memory", 90, arguments, missing.get(builder, ""))
        )
    arguments = {"model": names[-1] if "31m" not in names else "31m", "models": models}
    found.append(Section("out of memory torch", "out_of_memory_torch", 90, arguments, no_torch))
    found += training_plan(quick, os.path.join(work, "training"), onnx)
    found += clip_plan(quick, os.path.join(work, "clips"), engines, onnx)
    for builder in () if quick or "31m" not in names else flavours.NAMES:
        found.append(build(builder, "31m", (1, 8, 8), (1, 64, 64)))
        speed = {"flavour": builder, "engines": engines, **repeat, "sizes": [8, 64]}
        found.append(
            Section(
                f"throughput {builder} in other batches", "throughput", 90, speed, missing.get(builder, "")
            )
        )
    for mode in () if quick else ("reduce-overhead", "max-autotune"):  # last: it may compile for minutes
        for model in names if mode == "reduce-overhead" else names[:2]:
            arguments = {"model": model, "mode": mode, **repeat}
            found.append(Section(f"torch.compile {mode} {model}", "torch_compiled", 180, arguments, no_torch))
    return [
        each
        for each in found
        if not options.only or any(fnmatch.fnmatch(each.name, pattern) for pattern in options.only)
    ]


def lacking(*modules: str) -> str:
    """Which modules are not installed, in words; empty if all are."""
    absent = [name for name in modules if not sections.present(name)]
    return f"{', '.join(absent)} not installed" if absent else ""


def training_plan(quick: bool, folder: str, onnx: str | None) -> list[Section]:
    """The trainer, at its default widths and size but for what is compared to the bit."""
    reason = "not with --onnx" if onnx else lacking(*training.NEEDS)
    command = reason or lacking(*training.NEEDS, *training.COMMAND_NEEDS)
    base = {"folder": folder, "device": "cuda"}
    drawn = {"folder": folder, "drawn": 24 if quick else 48, "copies": 24, "size": (1280, 1918)}
    whole = base | {"size": sections.SIZE, "batch_size": 16, "epochs": 3 if quick else 6}
    few = base | {"size": sections.SIZE, "widths": (16, 32, 64, 128), "batch_size": 4}
    speed = base | {"size": sections.SIZE, "augment": "strong", "steps": 12, "rounds": 2 if quick else 3}
    found = [Section("training data", "training_data", 90, drawn, reason)]
    found += [
        Section(f"training {precision}", "training", 100, whole | {"precision": precision}, reason)
        for precision in ("bf16", "fp16", "fp32")
    ]
    return [
        *found,
        Section(
            "training deterministic",
            "training_deterministic",
            90,
            few | {"epochs": 2 if quick else 3},
            reason,
        ),
        Section("training killed and resumed", "training_killed", 150, few | {"epochs": 8}, command),
        Section(
            "training in two processes",
            "training_processes",
            150,
            few | {"epochs": 4, "precision": "fp32"},
            reason,
        ),
        Section(
            "training from files",
            "training_loading",
            100,
            speed | {"batch_sizes": (8, 64) if quick else (8, 32, 128)},
            reason,
        ),
    ]


def clip_plan(quick: bool, folder: str, engines: str, onnx: str | None) -> list[Section]:
    """Video: the GPU's decoder and encoder by themselves, then whole clips."""
    reason = "not with --onnx" if onnx else lacking(*clips.NEEDS)
    rounds = 2 if quick else 3
    drawn = {
        "folder": folder,
        "seconds": 4 if quick else 10,
        "copies": 5 if quick else 8,
        "size": (720, 1280),
    }
    decoding = {"folder": folder, "hardware": "cuda", "rounds": rounds, "compared": 50 if quick else 200}
    encoding = {"folder": folder, "codecs": ("h264", "h264_nvenc"), "frames": 100, "rounds": rounds}
    ways = {"decoders": (None, "cuda"), "codecs": ("h264", "h264_nvenc")}
    whole = {"folder": folder, "engines": engines, "device": None, **ways, "rounds": rounds}
    return [
        Section("clip drawn", "clip_drawn", 90, drawn, reason),
        Section("clip decoding", "clip_decoding", 60, decoding, reason),
        Section("clip encoding", "clip_encoding", 60, encoding, reason),
        Section("clip to masks and overlay", "clip_run", 150, whole, reason),
    ]


# A process for each section ---------------------------------------------------------------------------------


def run_section(section: Section, seconds: float, folder: str, script: str = __file__) -> dict[str, Any]:
    """What became of it: status `ok`, `failed`, `crashed`, `timeout` or `skipped`, the reason, and what it
    had measured.
    """
    job, result, log = (os.path.join(folder, name) for name in ("job.json", "result.json", "log.txt"))
    with suppress(FileNotFoundError):
        os.unlink(result)
    write_atomic(
        job,
        json.dumps({"function": section.function, "arguments": section.arguments, "result": result}).encode(),
    )
    begun = time.perf_counter()
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [sys.executable, script, "--child", job],
            cwd=sections.ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that its own children can be ended with it
        )
        try:
            code: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    try:
        with open(result, encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError):
        found = {"status": "running", "reason": "", "data": {}}
    if code is None:
        found |= {"status": "timeout", "reason": f"had not ended after {seconds:.0f} s, and was killed"}
    elif code != 0 and found["status"] == "running":
        found |= {"status": "crashed", "reason": f"{_ending(code)} ended the process"}
    elif code != 0 and found["status"] == "ok":
        found |= {"status": "crashed", "reason": f"{_ending(code)} when it ended, after all was measured"}
    elif found["status"] == "running":
        found |= {"status": "crashed", "reason": "ended without a result"}
    with open(log, encoding="utf-8", errors="replace") as file:
        tail = (
            []
            if found["status"] in ("ok", "skipped")
            else [line[:300] for line in file.read().splitlines()[-TAIL:]]
        )
    return {"name": section.name, **found, "seconds": time.perf_counter() - begun, "output": tail}


def _ending(code: int) -> str:
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"exit status {code}"


def functions() -> dict[str, Callable[..., None]]:
    """What sections can do, by name."""
    return sections.FUNCTIONS | with_torch.FUNCTIONS | training.FUNCTIONS | clips.FUNCTIONS


def child(job: str, functions: dict[str, Callable[..., None]]) -> int:
    """The other end of `run_section`."""
    with open(job, encoding="utf-8") as file:
        task = json.load(file)
    found: dict[str, Any] = {"status": "running", "reason": "", "data": {}}

    def save() -> None:
        write_atomic(task["result"], json.dumps(found).encode())

    try:
        functions[task["function"]](found["data"], save, **task["arguments"])
        found["status"] = "ok"
    except sections.Skip as error:
        found |= {"status": "skipped", "reason": str(error)}
    except UnetBatchError as error:
        traceback.print_exc()
        found |= {"status": "failed", "reason": error.message, "hint": error.hint}
    except Exception as error:  # noqa: BLE001 - it is a report
        traceback.print_exc()
        found |= {"status": "failed", "reason": " ".join(f"{type(error).__name__}: {error}".split())[:500]}
    save()
    return 0


# The whole --------------------------------------------------------------------------------------------------


def header(command: Sequence[str]) -> dict[str, Any]:
    """On what, with what, when and how."""
    driver: gpu.Driver | None = gpu.driver()
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in LIBRARIES:
        versions[name] = None
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    versions |= {name: flavours.installed_version(name) for name in flavours.NAMES}
    return {
        "format": "unet-batch gpu check",
        "gpu": driver.gpus[0].name if driver is not None and driver.gpus else None,
        "gpu_memory": driver.gpus[0].memory if driver is not None and driver.gpus else None,
        "compute_capability": driver.gpus[0].sm if driver is not None and driver.gpus else None,
        "driver_cuda": "{}.{}".format(*driver.cuda) if driver is not None else None,
        "system": f"{platform.system()} {platform.machine()}, {cpu_count()} cores",
        "versions": versions,
        "date": time.strftime("%Y-%m-%d %H:%M:%S%z"),
        "command": shlex.join(command),
    }


def check(options: argparse.Namespace, work: str) -> int:
    """Run the plan; the exit status."""
    begun = time.perf_counter()
    result: dict[str, Any] = {**header(["python", *sys.argv]), "sections": []}
    make_folder(options.output)
    for section in plan(options, work):
        left = options.seconds - (time.perf_counter() - begun)
        found: dict[str, Any]
        if section.skip or left < 5:
            reason = section.skip or f"the {options.seconds:.0f} s of --seconds were used up"
            found = {
                "name": section.name,
                "status": "skipped",
                "reason": reason,
                "seconds": 0.0,
                "data": {},
                "output": [],
            }
        else:
            print(f"{section.name} ...", flush=True)
            found = run_section(section, min(section.seconds, left), work)
        print(
            f"{section.name}: {found['status']}, {found['seconds']:.1f} s {found['reason']}".rstrip(),
            flush=True,
        )
        for line in found["output"][-5:]:
            print(f"    {line}")
        result["sections"].append(found)
        save(options.output, result)
    result["sections"].append(agreement(result["sections"]))
    save(options.output, result)
    print(f"written: {os.path.join(options.output, 'gpu_check.md')}")
    return int(any(found["status"] not in ("ok", "skipped") for found in result["sections"]))


def agreement(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Whether all providers gave the same bytes, with and without graphs: no `buffers` section knows of the
    others.
    """
    digests: dict[str, dict[str, str]] = {}
    for section in found:
        if section["name"].startswith("buffers "):
            builder, provider = section["name"].split()[1:]
            for entry in section["data"].get("entries", []):
                key = f"{builder} {entry['model']}, batch {entry['profile'][1]}"
                if "digest" in entry:
                    digests.setdefault(key, {})[
                        f"{provider}, graphs {'on' if entry['graphs'] else 'off'}"
                    ] = entry["digest"]
    differ = [key for key, each in digests.items() if len(set(each.values())) > 1]
    several = any(len({way.split(",")[0] for way in each}) > 1 for each in digests.values())
    status, reason = ("ok", "") if several else ("skipped", "fewer than two providers ran")
    if differ:
        status, reason = "failed", f"other bytes for {'; '.join(differ)}"
    data = {"digests": digests}
    return {
        "name": "providers agree",
        "status": status,
        "reason": reason,
        "seconds": 0.0,
        "data": data,
        "output": [],
    }


def save(folder: str, result: dict[str, Any]) -> None:
    write_atomic(os.path.join(folder, "gpu_check.json"), (json.dumps(result, indent=1) + "\n").encode())
    write_atomic(os.path.join(folder, "gpu_check.md"), report.markdown([result]).encode())


def dry_run(options: argparse.Namespace) -> None:
    here = header(["python", *sys.argv])
    print("GPU: " + (gpu.missing() or f"{here['gpu']}, driver for CUDA {here['driver_cuda']}"))
    print("libraries: " + ", ".join(f"{name} {version or '-'}" for name, version in here["versions"].items()))
    for section in plan(options, "WORK"):
        print(
            f"{section.name}: "
            + (f"skipped: {section.skip}" if section.skip else f"at most {section.seconds:.0f} s")
        )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", metavar="OUT", default="gpu_check", help="folder for the two files")
    parser.add_argument(
        "--quick", action="store_true", help="fewer batches, rounds, photos and epochs; no torch.compile"
    )
    parser.add_argument("--models", default=",".join(sections.MODELS), help="of: %(default)s")
    parser.add_argument(
        "--seconds", type=float, help="for everything; what comes later is skipped (780, quick 290)"
    )
    parser.add_argument("--batches", type=int, help="for the growth of memory (2000, quick 500)")
    parser.add_argument(
        "--only", action="append", metavar="PATTERN", help="sections by name; may be given again"
    )
    parser.add_argument("--work", metavar="DIR", help="keep models, engines, photos and clips here")
    parser.add_argument("--onnx", metavar="DIR", help="take ONNX files instead of checkpoints; no PyTorch")
    parser.add_argument("--export", metavar="DIR", help="write those files, and stop")
    parser.add_argument(
        "--merge", nargs="+", metavar="JSON", help="print one Markdown of several results, and stop"
    )
    parser.add_argument("--dry-run", action="store_true", help="list the sections, and stop")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        return child(options.child, functions())
    options.models = options.models.split(",")
    if unknown := [name for name in options.models if name not in sections.MODELS]:
        parser.error(f"no model {', '.join(unknown)}: choose from {', '.join(sections.MODELS)}")
    options.seconds = options.seconds or (290.0 if options.quick else 780.0)
    options.batches = options.batches or (500 if options.quick else 2000)
    options.onnx = options.onnx and os.path.abspath(options.onnx)  # children run in the repository's root
    if options.merge:
        print(
            report.markdown([json.loads(Path(path).read_text(encoding="utf-8")) for path in options.merge]),
            end="",
        )
    elif options.export:
        sections.export(
            options.export,
            options.models,
            (sections.TYPED, sections.WEAK),
            lambda line: print(line, flush=True),
        )
    elif options.dry_run:
        dry_run(options)
    elif reason := gpu.missing():
        print(f"Nothing was run: {reason}.", file=sys.stderr)
        return 2
    elif options.work:
        os.makedirs(options.work, exist_ok=True)
        return check(options, os.path.abspath(options.work))
    else:
        with tempfile.TemporaryDirectory() as work:
            return check(options, work)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
