"""Run everything that needs a GPU; results go to `OUT/gpu_check.json`, tables to `OUT/gpu_check.md`.

    python -m scripts.gpu_check -o OUT                  # everything, about 13 minutes on a fast GPU
    python -m scripts.gpu_check -o OUT --quick          # under 5 minutes
    python -m scripts.gpu_check -o OUT --only 'training*' --only 'clip*'    # the trainer and video alone
    python -m scripts.gpu_check --dry-run               # every section on a CPU: is all there but the GPU?
    python -m scripts.gpu_check --export DIR            # ONNX files for a Python without PyTorch
    python -m scripts.gpu_check -o OUT --onnx DIR       # there: TensorRT and PyCUDA alone, 8.6 included
    python -m scripts.gpu_check --merge A.json B.json   # one Markdown of several runs

Every section runs in a process of its own and the JSON is written after each, so that a crash, a hang or a
machine that goes away costs no more than the section it happens in. Nothing is left behind but the two files;
`--work DIR` keeps models and engines for another run, and `--only 'throughput*'` picks sections by name.

Exit status: 0 everything fine, 1 a section failed, 2 nothing could be run.
"""

from __future__ import annotations

import argparse
import dataclasses
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
from importlib import metadata
from pathlib import Path
from typing import Any

from scripts.gpu_check import clips, decoding, engines, networks, pytorch, report, sections, training
from scripts.gpu_check.plan import Section, plan
from unet_batch import gpu
from unet_batch.engine import flavours
from unet_batch.errors import UnetBatchError
from unet_batch.files.atomic import make_folder, write_atomic
from unet_batch.pipeline import cpu_count

TAIL = 25  # lines of a process that did not end well
LIBRARIES = ("torch", "pycuda", "cuda-bindings", "numpy", "onnx", "onnxruntime", "opencv-python-headless")


# A process for each section ---------------------------------------------------------------------------------


def run_section(
    section: Section, seconds: float, folder: str, program: Sequence[str] = ("-m", "scripts.gpu_check")
) -> dict[str, Any]:
    """Run a section in a process of its own.

    Args:
        section: what to run.
        seconds: after which it is killed.
        folder: for its files.
        program: arguments of Python that start the process; it calls `run_child`.

    Returns:
        Status `ok`, `failed`, `crashed`, `timeout` or `skipped`, the reason, and what was measured.
    """
    job, result, log = (os.path.join(folder, name) for name in ("job.json", "result.json", "log.txt"))
    with suppress(FileNotFoundError):
        os.unlink(result)
    write_atomic(
        job,
        json.dumps(
            {"function": section.function, "arguments": dict(section.arguments), "result": result}
        ).encode(),
    )
    begun = time.perf_counter()
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [sys.executable, *program, "--child", job],
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
        found |= {"status": "crashed", "reason": f"{_end_of(code)} ended the process"}
    elif code != 0 and found["status"] == "ok":
        found |= {"status": "crashed", "reason": f"{_end_of(code)} when it ended, after all was measured"}
    elif found["status"] == "running":
        found |= {"status": "crashed", "reason": "ended without a result"}
    with open(log, encoding="utf-8", errors="replace") as file:
        tail = (
            []
            if found["status"] in ("ok", "skipped")
            else [line[:300] for line in file.read().splitlines()[-TAIL:]]
        )
    return {"name": section.name, **found, "seconds": time.perf_counter() - begun, "output": tail}


def _end_of(code: int) -> str:
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"exit status {code}"


def functions() -> dict[str, Callable[..., None]]:
    """What sections can do, by name."""
    modules = (sections, engines, pytorch, decoding, training, clips)
    return {name: function for module in modules for name, function in module.FUNCTIONS.items()}


def run_child(job: str, functions: dict[str, Callable[..., None]]) -> int:
    """Run the section of a job file, and write its result; the other end of `run_section`."""
    with open(job, encoding="utf-8") as file:
        task = json.load(file)
    found: dict[str, Any] = {"status": "running", "reason": "", "data": {}}

    def save() -> None:
        write_atomic(task["result"], json.dumps(found).encode())

    try:
        functions[task["function"]](found["data"], save, **task["arguments"])
        found["status"] = "ok"
    except sections.Skip as error:
        found |= {"status": "skipped", "reason": str(error), "no_gpu": isinstance(error, sections.NoGpu)}
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
    """Whether all providers gave the same bytes, with and without graphs; made of the `buffers` sections."""
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


REHEARSAL_SECONDS = 150


def dry_run(options: argparse.Namespace, work: str) -> int:
    """Go through every section without a GPU, small; each is `ready`, or names what is missing.

    Whatever a section does on a CPU is done: its imports, its arguments, its pictures, the arithmetic where
    PyTorch can do it; the others end where they would reach for the GPU.

    Returns:
        The exit status: 1 if a section failed; one that lacks a library has not.
    """
    here = header(["python", *sys.argv])
    print("GPU: " + (gpu.missing() or f"{here['gpu']}, driver for CUDA {here['driver_cuda']}"))
    print("libraries: " + ", ".join(f"{name} {version or '-'}" for name, version in here["versions"].items()))
    failed = 0
    for section in plan(options, work):
        print(f"{section.name}: ", end="", flush=True)
        if section.skip:
            print(f"missing: {section.skip}")
            continue
        small = dataclasses.replace(section, arguments={**section.arguments, **section.rehearsal})
        found = run_section(small, REHEARSAL_SECONDS, work)
        took = f"{found['seconds']:.1f} s"
        if found["status"] == "ok":
            print(f"ready: went through on the CPU, {took}")
        elif found.get("no_gpu"):
            print(f"ready: nothing missing but the GPU, {took}")
        elif found["status"] == "skipped":
            print(f"missing: {found['reason']}, {took}")
        else:
            failed += 1
            print(f"{found['status']}: {found['reason']}, {took}")
            for line in found["output"][-5:]:
                print(f"    {line}")
    return int(failed > 0)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.gpu_check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-o", "--output", metavar="OUT", default="gpu_check", help="folder for the two files")
    parser.add_argument(
        "--quick", action="store_true", help="fewer batches, rounds, photos and epochs; no torch.compile"
    )
    parser.add_argument("--models", default=",".join(networks.MODELS), help="of: %(default)s")
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
    parser.add_argument(
        "--dry-run", action="store_true", help="go through the sections on a CPU, write nothing, and stop"
    )
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = make_parser()
    options = parser.parse_args(arguments)
    if options.child:
        return run_child(options.child, functions())
    options.models = options.models.split(",")
    if unknown := [name for name in options.models if name not in networks.MODELS]:
        parser.error(f"no model {', '.join(unknown)}: choose from {', '.join(networks.MODELS)}")
    options.seconds = options.seconds or (290.0 if options.quick else 780.0)
    options.batches = options.batches or (500 if options.quick else 2000)
    options.onnx = options.onnx and os.path.abspath(options.onnx)  # children run in the repository's root
    if options.merge:
        print(
            report.markdown([json.loads(Path(path).read_text(encoding="utf-8")) for path in options.merge]),
            end="",
        )
    elif options.export:
        networks.export(
            options.export,
            options.models,
            (networks.TYPED, networks.WEAK),
            lambda line: print(line, flush=True),
        )
    elif reason := "" if options.dry_run else gpu.missing():
        print(f"Nothing was run: {reason}.", file=sys.stderr)
        return 2
    else:
        with tempfile.TemporaryDirectory() as temporary:
            if options.dry_run:
                return dry_run(options, temporary)
            os.makedirs(options.work or temporary, exist_ok=True)
            return check(options, os.path.abspath(options.work or temporary))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
