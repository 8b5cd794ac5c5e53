"""`python -m scripts.gpu_check` without a GPU: what it says, survives, and measures in host memory."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from scripts.gpu_check import __main__ as gpu_check
from scripts.gpu_check import measure, networks, plan, pytorch, report, sections
from scripts.gpu_check.plan import Section
from tests.conftest import ROOT
from tests.helpers.host import Brightness, HostBackend, brightness
from tests.helpers.systems import needs_linux
from tests.helpers.tiny import encoder_spec
from tests.helpers.waiting import until
from unet_batch import gpu
from unet_batch.build import BuildOptions
from unet_batch.engine import onnx_model, store
from unet_batch.engine.proof import Reference
from unet_batch.errors import BackendError
from unet_batch.inference.backends import cuda_memory
from unet_batch.model.architectures import build_network
from unet_batch.testing import FakeBackend, HostMemory, fake_spec
from unet_batch.types import ModelSpec

SHAPE = (32, 48, 3)
H200 = gpu.Driver((13, 0), (gpu.Gpu(0, "NVIDIA H200", (9, 0), 150_000_000_000),))
H100 = gpu.Driver((13, 0), (gpu.Gpu(0, "NVIDIA H100 80GB HBM3", (9, 0), 80_000_000_000),))
OTHER = gpu.Driver((13, 0), (gpu.Gpu(0, "NVIDIA L4", (8, 9), 24_000_000_000),))


@pytest.fixture
def reference() -> Reference:
    pictures = np.random.default_rng(3).integers(0, 256, (5, *SHAPE), dtype=np.uint8)
    return Reference(pictures, brightness(pictures))


# The command ------------------------------------------------------------------------------------------------


def planned(
    monkeypatch: pytest.MonkeyPatch, installed: Callable[[str], bool], *arguments: str
) -> dict[str, Section]:
    """The plan of a command line where some modules are installed, by name."""
    seen: list[Section] = []

    def keep(options: argparse.Namespace, work: str) -> int:
        seen.extend(gpu_check.plan(options, work))
        return 0

    monkeypatch.setattr(sections, "present", installed)
    monkeypatch.setattr(gpu_check, "dry_run", keep)
    assert gpu_check.main(["--dry-run", *arguments]) == 0
    assert len({section.name for section in seen}) == len(seen)
    return {section.name: section for section in seen}


def test_sections_that_lack_a_library_say_which(monkeypatch: pytest.MonkeyPatch) -> None:
    there = ("torch", "tensorrt_rtx", "simplejpeg", "PIL", "cv2", "filelock", "onnx", "onnxscript", "pytest")
    found = planned(monkeypatch, lambda module: module in there, "--models", "bundled,31m")
    assert found["build tensorrt bundled"].skip == "tensorrt is not installed"
    assert found["buffers tensorrt-rtx pycuda"].skip == "pycuda is not installed"
    assert not any(found[name].skip for name in ("environment", "tests", "build tensorrt-rtx 31m", "photos"))
    assert found["run bundled"].skip == found["throughput torch"].skip == "safetensors not installed"
    assert "build tensorrt-rtx 4class" not in found
    assert found["training bf16"].skip == "kornia, safetensors not installed"
    assert found["clip decoding"].skip == "av, safetensors not installed"


def test_photos_need_no_torch_and_no_video(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each section asks for what it imports: what tests of others need does not keep it from running."""
    there = ("simplejpeg", "PIL", "cv2")
    found = planned(monkeypatch, lambda module: module in there)
    assert (found["photos"].skip, found["photo decoding"].skip) == ("", "")
    there += ("torch", "safetensors")
    found = planned(monkeypatch, lambda module: module in there)
    assert (found["throughput torch"].skip, found["out of memory torch"].skip) == ("", "")
    assert found["run bundled"].skip == "filelock not installed"
    assert found["models"].skip == "filelock, onnx, onnxscript not installed"


def test_what_reaches_the_memory_is_what_the_program_knows() -> None:
    assert set(sections.PROVIDERS) == set(cuda_memory.PROVIDERS)


def test_builds_have_the_time_that_their_version_takes() -> None:
    """8.6 takes up to 200 s for the bundled network, and hands its times of kernels out at the end only."""
    assert plan.build_levels("10.13.3") == (None,)
    assert plan.build_levels("8.6.0") == (2, None)
    assert plan.build_seconds("8.6.0", "bundled", None) > 200 > plan.build_seconds("10.13.3", "bundled", None)
    assert plan.build_seconds("8.6.0", "31m", None) > plan.build_seconds("8.6.0", "bundled", None)


def test_a_build_may_take_as_long_as_all_its_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan.flavours, "installed_version", lambda name: "8.6.0")
    built = planned(monkeypatch, lambda module: True)["build tensorrt bundled"]
    assert built.arguments["levels"] == (2, None)
    assert built.seconds == plan.build_seconds("8.6.0", "bundled", 2) + plan.build_seconds(
        "8.6.0", "bundled", None
    )


KIT = (
    *("throughput torch", "photos", "run bundled", "out of memory torch"),
    *("buffers tensorrt pycuda", "throughput tensorrt", "memory tensorrt pycuda", "out of memory tensorrt"),
)


def test_the_names_that_the_kit_of_a_gpu_machine_calls_are_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It travels apart from this project: its patterns, options, and imports are pinned here."""
    patterns = [part for name in KIT for part in ("--only", name)]
    common = ["--quick", "--seconds", "110", "--work", str(tmp_path)]
    found = planned(monkeypatch, lambda module: True, *common, "--models", "bundled", *patterns)
    assert set(found) == set(KIT)
    there, more = ("tensorrt", "pycuda"), ("--models", "4class,bundled", "--onnx", "d")
    found = planned(monkeypatch, lambda module: module in there, *common, *more, *patterns)
    assert {name for name, section in found.items() if not section.skip} == set(KIT[4:])
    assert found["throughput tensorrt"].arguments["engines"].endswith("engines")
    assert gpu_check.make_parser().parse_args(["--export", "d", "--models", "4class,bundled"]).export == "d"
    monkeypatch.undo()  # what is not installed is replaced, for all later tests
    sections._stand_ins()
    assert sections.graphs is networks.graphs
    options = BuildOptions("g.onnx", "engines", batch=(1, 32, 32), builder="tensorrt", opt_level=2)
    assert (options.model, options.engines_dir, options.opt_level) == ("g.onnx", "engines", 2)


def rehearse(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], outcomes: dict[str, dict[str, Any]]
) -> tuple[int, dict[str, str]]:
    """A dry run of sections whose ends are given."""
    asked: list[Section] = []

    def outcome(section: Section, seconds: float, folder: str) -> dict[str, Any]:
        asked.append(section)
        plain = {"status": "ok", "reason": "", "seconds": 1.0, "output": ["the last words"]}
        return plain | outcomes[section.name]

    def sections_of(options: argparse.Namespace, work: str) -> list[Section]:
        found = [
            Section(name, "none", 9, {"device": "cuda", "n": 1}, "", {"device": "cpu"}) for name in outcomes
        ]
        return [*found, Section("left out", "none", 9, {}, "av not installed")]

    monkeypatch.setattr(gpu_check, "plan", sections_of)
    monkeypatch.setattr(gpu_check, "run_section", outcome)
    status = gpu_check.main(["--dry-run"])
    assert all(section.arguments == {"device": "cpu", "n": 1} for section in asked)
    lines = capsys.readouterr().out.splitlines()[2:]
    return status, dict(line.split(": ", 1) for line in lines if not line.startswith(" "))


def test_a_dry_run_says_of_each_section_whether_all_is_there_but_the_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    none = {"status": "skipped", "reason": "no NVIDIA driver", "no_gpu": True}
    lacks = {"status": "skipped", "reason": "tensorrt is not installed", "no_gpu": False}
    outcomes: dict[str, dict[str, Any]] = {"whole": {}, "on the GPU": none, "lacks": lacks}
    assert rehearse(monkeypatch, capsys, outcomes) == (
        0,
        {
            "whole": "ready: went through on the CPU, 1.0 s",
            "on the GPU": "ready: nothing missing but the GPU, 1.0 s",
            "lacks": "missing: tensorrt is not installed, 1.0 s",
            "left out": "missing: av not installed",
        },
    )
    broken = {"status": "failed", "reason": "NameError: rounds"}
    status, lines = rehearse(monkeypatch, capsys, {"whole": {}, "broken": broken})
    assert (status, lines["broken"]) == (1, "failed: NameError: rounds, 1.0 s")


def test_a_dry_run_goes_through_real_sections_on_a_cpu(capfd: pytest.CaptureFixture[str]) -> None:
    names = ("photos", "photo decoding", "out of memory tensorrt-rtx")
    only = [part for name in names for part in ("--only", name)]
    assert gpu_check.main(["--dry-run", "--quick", *only]) == 0
    lines = dict(line.split(": ", 1) for line in capfd.readouterr().out.splitlines())
    assert lines["photos"].startswith("ready: went through on the CPU")
    assert lines["photo decoding"].startswith(("missing: nvidia.nvimgcodec is not installed", "ready: "))
    reachable = "ready: " if sections.present("tensorrt_rtx") else "missing: "
    assert lines["out of memory tensorrt-rtx"].startswith(reachable)


def test_the_tests_of_a_folder_are_run(tmp_path: Path) -> None:
    folder = tmp_path / "suite"
    folder.mkdir()
    (folder / "test_two.py").write_text(
        "import pytest\n\n@pytest.mark.gpu\ndef test_passes(): pass\n\ndef test_fails(): raise ValueError\n"
    )
    data: dict[str, Any] = {}
    sections.tests(data, lambda: None, 60, str(folder))
    assert (data["passed"], data["failed"], data["skipped"]) == (1, [], 0)


def test_the_tests_that_need_a_gpu_lie_in_the_folder_that_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """In no wider one: a module that lacks a library when it is collected ends pytest before any test."""
    (section,) = planned(monkeypatch, lambda name: True, "--only", "tests").values()
    marked = {path for path in (ROOT / "tests").rglob("test_*.py") if "pytest.mark.gpu" in path.read_text()}
    marked.discard(Path(__file__).resolve())  # it writes one
    assert {path.parent for path in marked} == {ROOT / section.arguments["folder"]}


def test_the_backend_stands_beside_the_kernels_that_it_takes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Not beside those that cuDNN found by trying, which PyTorch remembers in each thread by shape alone."""
    tried: dict[int, set[bool]] = {}

    def through_graph(*_: object, benchmark: bool) -> dict[str, Any]:
        tried.setdefault(threading.get_ident(), set()).add(benchmark)
        return {"images_per_s": {"median": 1e12 if benchmark else 1e-3}}

    def pipelined(*_: object) -> dict[str, Any]:
        tried[threading.get_ident()].add(torch.backends.cudnn.benchmark)
        return measure.rates([1.0], 1, 2)

    monkeypatch.setattr(pytorch, "_through_graph", through_graph)
    monkeypatch.setattr(pytorch.measure, "pipelined", pipelined)
    monkeypatch.setattr(pytorch, "_timed_torch", lambda *_: measure.rates([1.0], 1, 2))
    data: dict[str, Any] = {}
    pytorch.torch_speed(data, lambda: None, list(networks.TINY), str(tmp_path), [1, 2], 1, 1, "cpu")
    assert tried.pop(threading.get_ident()) == {False}
    assert list(tried.values()) == [{True}] * len(tried)
    first, last = data["entries"]
    assert first["pipeline"] == {}
    assert last["pipeline"]["TorchBackend"]["share_of_engine"] == pytest.approx(2e3)


TRAINING = {
    "training data",
    "training bf16",
    "training fp16",
    "training fp32",
    "training deterministic",
    "training killed and resumed",
    "training in two processes",
    "training from files",
}
CLIPS = {"clip drawn", "clip decoding", "clip encoding", "clip to masks and overlay"}


@pytest.mark.parametrize("more", [[], ["--quick"]])
def test_the_trainer_and_video_are_checked(monkeypatch: pytest.MonkeyPatch, more: list[str]) -> None:
    found = planned(monkeypatch, lambda module: True, "--only", "training*", "--only", "clip*", *more)
    assert set(found) == TRAINING | CLIPS
    assert not any(section.skip for section in found.values())


def test_only_the_command_line_needs_what_draws_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    found = planned(monkeypatch, lambda module: module not in ("matplotlib", "av"))
    assert {name for name in TRAINING if found[name].skip == "matplotlib not installed"} == {
        "training killed and resumed"
    }
    assert {name for name in CLIPS if found[name].skip == "av not installed"} == CLIPS


@pytest.mark.parametrize("quick", [True, False])
def test_each_section_of_the_plan_has_its_function_and_takes_its_arguments(
    monkeypatch: pytest.MonkeyPatch, quick: bool
) -> None:
    """Arguments go through JSON; one that a function does not know would be found out on the GPU only."""
    known = gpu_check.functions()
    for section in planned(monkeypatch, lambda module: True, *(["--quick"] if quick else [])).values():
        for arguments in (section.arguments, {**section.arguments, **section.rehearsal}):
            passed = json.loads(json.dumps(dict(arguments)))
            inspect.signature(known[section.function]).bind({}, lambda: None, **passed)


def test_with_onnx_files_nothing_runs_that_needs_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    there = ("tensorrt", "pycuda")
    found = planned(monkeypatch, lambda module: module in there, "--quick", "--onnx", "somewhere")
    runs = {
        name.rsplit(" ", 1)[0] if name.startswith("build") else name
        for name, section in found.items()
        if not section.skip
    }
    assert runs == {
        "environment",
        "build tensorrt",
        "buffers tensorrt pycuda",
        "throughput tensorrt",
        "memory tensorrt pycuda",
        "out of memory tensorrt",
    }


def test_without_a_gpu_it_says_so_and_writes_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(gpu, "missing", lambda: "no NVIDIA driver")
    assert gpu_check.main(["-o", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == "Nothing was run: no NVIDIA driver.\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [["--models", "huge"], ["--seconds", "soon"]])
def test_wrong_usage_ends_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        gpu_check.main(arguments)


def run(monkeypatch: pytest.MonkeyPatch, out: Path, outcomes: dict[str, Any], *arguments: str) -> int:
    """The whole command on a GPU that is pretended, with sections whose outcomes are given; one may be
    raised.
    """

    def outcome(section: Section, seconds: float, folder: str) -> dict[str, Any]:
        found = outcomes[section.name]
        if isinstance(found, BaseException):
            raise found
        return {
            "name": section.name,
            "status": "ok",
            "reason": "",
            "seconds": 1.0,
            "data": {},
            "output": [],
            **found,
        }

    monkeypatch.setattr(gpu, "missing", lambda: "")
    monkeypatch.setattr(gpu, "driver", lambda: OTHER)
    monkeypatch.setattr(
        gpu_check, "plan", lambda options, work: [Section(name, "none", 9) for name in outcomes]
    )
    monkeypatch.setattr(gpu_check, "run_section", outcome)
    return gpu_check.main(["-o", str(out), *arguments])


def read(out: Path) -> list[dict[str, Any]]:
    result = json.loads((out / "gpu_check.json").read_text())
    assert result["gpu"] == "NVIDIA L4"
    found: list[dict[str, Any]] = result["sections"]
    return found


def test_results_are_written_after_every_section(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(monkeypatch, tmp_path, {"a": {"data": {"x": 1}}, "b": KeyboardInterrupt()})
    assert [(found["name"], found["data"]) for found in read(tmp_path)] == [("a", {"x": 1})]
    assert "| a | ok |" in (tmp_path / "gpu_check.md").read_text()


@pytest.mark.parametrize(
    ("status", "expected"), [("ok", 0), ("skipped", 0), ("failed", 1), ("crashed", 1), ("timeout", 1)]
)
def test_the_exit_status_tells_whether_all_went_well(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, status: str, expected: int
) -> None:
    assert run(monkeypatch, tmp_path, {"a": {"status": status}}) == expected


def test_when_time_is_up_the_rest_is_skipped_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert run(monkeypatch, tmp_path, {"a": {}, "b": {}}, "--seconds", "1") == 0
    assert all(found["status"] == "skipped" and found["reason"] for found in read(tmp_path))


def test_providers_that_differ_are_found() -> None:
    def buffers(provider: str, *digests: str) -> dict[str, Any]:
        entries = [
            {"model": "m", "profile": [1, 32, 32], "graphs": graphs, "digest": digest}
            for graphs, digest in zip((True, False), digests, strict=True)
        ]
        return {"name": f"buffers tensorrt {provider}", "data": {"entries": entries}}

    same = gpu_check.agreement([buffers("pycuda", "a", "a"), buffers("torch", "a", "a")])
    assert (same["status"], list(same["data"]["digests"])) == ("ok", ["tensorrt m, batch 32"])
    assert (
        gpu_check.agreement([buffers("pycuda", "a", "a"), buffers("torch", "b", "b")])["status"] == "failed"
    )
    assert gpu_check.agreement([buffers("pycuda", "a", "a")])["status"] == "skipped"


# A process for each section ---------------------------------------------------------------------------------

SCRIPT = f"""
import os, signal, subprocess, sys, time
sys.path.insert(0, {str(ROOT)!r})
from scripts.gpu_check.__main__ import run_child
from scripts.gpu_check.sections import Skip
from unet_batch.errors import BackendError

def fine(data, save, number):
    data["number"] = number

def dies(data, save):
    data["half"] = 1
    save()
    data["lost"] = 2
    print("the last words", flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)

def exits(data, save):
    os._exit(7)

def dies_at_the_end(data, save):
    import atexit
    atexit.register(os.kill, os.getpid(), signal.SIGABRT)

def hangs(data, save, pid_file):
    child = subprocess.Popen(["sleep", "60"])
    with open(pid_file, "w") as file:
        file.write(str(child.pid))
    data["half"] = 1
    save()
    time.sleep(60)

def raises(data, save):
    {{}}["what is not there"]

def fails(data, save):
    raise BackendError("the masks are wrong", hint="look at them")

def skips(data, save):
    raise Skip("no such library")

if __name__ == "__main__":
    sys.exit(run_child(sys.argv[2], globals()))
"""


@pytest.fixture
def section(tmp_path: Path) -> Any:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)

    def run(function: str, seconds: float = 30, **arguments: Any) -> dict[str, Any]:
        return gpu_check.run_section(
            Section("it", function, 1, arguments), seconds, str(tmp_path), [str(script)]
        )

    return run


@pytest.mark.parametrize(
    ("function", "status", "reason"),
    [
        ("dies", "crashed", "SIGSEGV ended the process"),
        ("exits", "crashed", "exit status 7 ended the process"),
        ("dies_at_the_end", "crashed", "SIGABRT when it ended, after all was measured"),
        ("raises", "failed", "KeyError: 'what is not there'"),
        ("fails", "failed", "the masks are wrong"),
        ("skips", "skipped", "no such library"),
    ],
)
def test_what_becomes_of_a_section_is_recorded(section: Any, function: str, status: str, reason: str) -> None:
    found = section(function)
    assert (found["name"], found["status"], found["reason"]) == ("it", status, reason)
    if function == "dies":
        assert found["data"] == {"half": 1}
        assert found["output"] == ["the last words"]
    if function == "raises":
        assert any("Traceback" in line for line in found["output"])


def test_a_section_that_ends_well_has_its_data_and_no_output(section: Any) -> None:
    found = section("fine", number=4)
    assert (found["status"], found["data"], found["output"]) == ("ok", {"number": 4}, [])


@needs_linux
def test_a_section_that_hangs_is_killed_with_all_it_started(section: Any, tmp_path: Path) -> None:
    begun = time.perf_counter()
    found = section("hangs", seconds=2.5, pid_file=str(tmp_path / "pid"))
    assert time.perf_counter() - begun < 30
    assert (found["status"], found["data"]) == ("timeout", {"half": 1})
    pid = int((tmp_path / "pid").read_text())
    until(lambda: not alive(pid))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_an_older_result_is_not_taken_for_this_one(section: Any) -> None:
    assert section("fine", number=4)["data"]
    assert section("exits")["data"] == {}


# Markdown ---------------------------------------------------------------------------------------------------


RATE = {"median": 812.4, "min": 800.0, "max": 820.0, "rounds": [800.0, 812.4, 820.0]}
NO_NVENC = {"reason": "h264_nvenc does not work here: | no such library"}
TRAINED_AND_FILMED: dict[str, dict[str, Any]] = {
    "training fp16": {
        "precision": "fp16",
        "widths": [32, 64],
        "batch": 16,
        "epochs": 2,
        "steps": 28,
        "history": [{"loss": 1.2, "val_dice": 0.5}, {"loss": 0.6, "val_dice": 0.9876}],
        "images_per_s": RATE,
        "peak_bytes": 2**30,
        "estimated_bytes": 2**29,
        "scale": 65536.0,
        "skipped_steps": 2,
    },
    "training deterministic": {
        "equal": [
            {"data": "one", "what": "again", "tensors": 124, "differing": [], "notes": []},
            {
                "data": "three",
                "what": "again",
                "tensors": 124,
                "differing": ["model.a"],
                "notes": ["nll_loss2d"],
            },
        ]
    },
    "training in two processes": {
        "how": "gloo",
        "gpus": 1,
        "batchnorm": "over both",
        "batch": 4,
        "one": [1.0, 0.5],
    },
    "training from files": {
        "loading": [
            {
                "batch": 8,
                "precision": "bf16",
                "augment": "strong",
                "fixed": RATE,
                "decoded": RATE,
                "decoded_times": 1.05,
            },
            {"batch": 900, "precision": "bf16", "augment": "strong", "reason": "too few"},
        ]
    },
    "clip decoding": {
        "decoders": [
            {"decoder": "processor", "frames": 60, "frames_per_s": RATE, "format": "yuv420p"},
            {"decoder": "cuda", "frames": 60, "frames_per_s": RATE, "format": "nv12"},
        ],
        "compared": {"frames": 50, "mean": 0.0123, "largest": 1, "other_times": 0},
    },
    "clip encoding": {
        "encoders": [
            {
                "encoder": "libx264",
                "frames": 100,
                "frames_per_s": RATE,
                "bytes": 2**20,
                "read_back": 100,
                "mean": 1.94,
            },
            {"encoder": "h264_nvenc", **NO_NVENC},
        ]
    },
    "clip to masks and overlay": {
        "backend": "tensorrt 10.13",
        "precision": "fp16",
        "batch": 32,
        "ways": [
            {
                "decoder": "cuda",
                "codec": "h264",
                "frames": 2000,
                "frames_per_s": RATE,
                "wall_over_floor": RATE,
                "bottleneck": "encode overlay",
                "stages": [{"name": "encode overlay", "share": 0.97, "workers": 1}],
                "notes": [],
                "problems": [],
            },
            {"decoder": "cuda", "codec": "h264_nvenc", **NO_NVENC},
        ],
    },
}


RUN: dict[str, Any] = {
    "model": "bundled",
    "items": 400,
    "entries": [
        {
            "backend": "torch-cuda",
            "precision": "fp16",
            "batch": 32,
            "isolate": isolate,
            "images_per_s": RATE,
            "slowest_images_per_s": 1000.0,
            "bottleneck": "infer",
            "stages": [{"name": "infer", "busy": 0.4, "workers": 1, "cpu": 0.1}],
        }
        for isolate in (False, True)
    ],
    "masks": [
        {
            "model": "bundled",
            "backend": "torch-cuda fp16",
            "photos": 8,
            "real": True,
            "dice": 0.9997,
            "pixels": 2e-4,
        }
    ],
}
DECODED: dict[str, Any] = {
    "decoders": [
        {"decoder": "ours, whole", "photos_per_s": RATE},
        {"decoder": "nvImageCodec, GPU", "photos_per_s": RATE, "largest": 1, "mean": 0.1, "beyond_one": 0.0},
    ],
    "damaged": [
        {
            "decoder": "nvImageCodec, GPU",
            "file": "cut in the middle",
            "ours": "its data end early",
            "theirs": "decoded",
        }
    ],
}


def hand_made() -> dict[str, Any]:
    rate = {"median": 8123.4, "min": 8000.0, "max": 8200.0, "rounds": [8000.0, 8123.4, 8200.0]}
    parity = {
        "pictures": 48,
        "dice": 0.99987,
        "worst": 0.99,
        "pixels": 0.0001,
        "largest": 0.01,
        "foreground": 0.4,
    }
    built = {
        "model": "31m",
        "batch": [1, 32, 32],
        "level": None,
        "was_there": False,
        "compile_seconds": 41.26,
        "plan_bytes": 2**26,
        "shares": [{"source": "network", "body": 1.0}],
        "proofs": {
            "NVIDIA H200": {"batch 32 and 16": parity},
            "onnxruntime 1.31": {"batch 1": parity | {"dice": 0.5}},
        },
        "verified_on_gpu": True,
        "notes": [],
        "inspector": {"reason": "it does not say"},
    }
    refused = {"model": "4class", "batch": [1, 32, 32], "level": 2, "failed": "cannot build | really"}
    speed = {
        "images_per_s": rate,
        "ms_per_batch": rate,
        "tflops": 458.6,
        "floor_images_per_s": 13404.0,
        "share_of_floor": 0.606,
        "clock": "events",
    }
    throughput = {
        "backend": "tensorrt 10.13",
        "model": "31m",
        "batch": 32,
        "engine": {"plain": speed, "graph": {"reason": "no CUDA graphs"}},
        "pipeline": {
            "pycuda": speed | {"share_of_engine": 0.96, "threads": 3},
            "torch": speed | {"share_of_floor": None, "share_of_engine": 0.94, "threads": 3},
        },
    }

    def section(
        name: str, data: dict[str, Any], status: str = "ok", output: tuple[str, ...] = ()
    ) -> dict[str, Any]:
        return {
            "name": name,
            "status": status,
            "reason": "",
            "seconds": 1.25,
            "data": data,
            "output": list(output),
        }

    return {
        **gpu_check.header(["python", "-m", "scripts.gpu_check", "--quick"]),
        "gpu": "NVIDIA H200",
        "driver_cuda": "13.0",
        "sections": [
            section(
                "tests",
                {"passed": 7, "failed": ["a::b"], "skipped": 1, "output": []},
                "failed",
                ("E  assert",),
            ),
            section("build tensorrt 31m", {"version": "10.13", "engines": [built, refused]}),
            section("throughput tensorrt", {"entries": [throughput]}),
            section("throughput torch", {"entries": [throughput | {"backend": "torch 2.11"}]}),
            section("run bundled", RUN),
            section("photo decoding", DECODED),
            section("memory tensorrt torch", {}, "crashed"),
            *(section(name, data) for name, data in TRAINED_AND_FILMED.items()),
        ],
    }


def test_markdown_shows_what_was_measured_and_a_dash_for_the_rest() -> None:
    text = report.markdown([hand_made()])
    assert text.startswith("# NVIDIA H200, driver for CUDA 13.0, ")
    assert "`python -m scripts.gpu_check --quick`" in text
    assert "7 passed, 1 failed, 1 skipped; failed: `a::b`" in text
    assert (
        "| tensorrt 10.13 | 31m | 1,32,32 | - | 41.3 | 64.0 MiB | network 100.0 % | - of -/- | 0.99987 | "
        "yes | - |" in text
    )
    assert "**failed**: cannot build \\| really" in text
    assert (
        "| engine, plain | 8,123 (8,000 to 8,200) | 8,123.400 (8,000.000 to 8,200.000) | 458.6 | 13,404 | "
        "60.6 % | - | events |" in text
    )
    assert "| engine, graph | - | - | - | - | - | - | no CUDA graphs |" in text
    assert "| 13,404 | 60.6 % | 96.0 % | events |" in text
    assert "| 13,404 | - | **94.0 %** | events |" in text
    assert (
        "| bundled | torch-cuda fp16, batch 32 | 400 | threads | 812 (800 to 820) | 1,000 | infer |" in text
    )
    assert "| bundled | torch-cuda fp16 | 8 of Carvana | 0.99970 | 0.020 % |" in text
    assert "| nvImageCodec, GPU | 812 (800 to 820) | 1 | 0.100 | 0.000 % | - |" in text
    assert "| ours, whole | 812 (800 to 820) | - | - | - | - |" in text
    assert "| nvImageCodec, GPU | cut in the middle | its data end early | decoded |" in text
    assert "| memory tensorrt torch | crashed | 1.2 |" in text
    assert (
        "| fp16 | 32, 64 | 16 | 2 x 28 | 812 (800 to 820) | 1.2000 to 0.6000 | 0.9876 | 65,536 | 2 | "
        "1,024.0 MiB |" in text
    )
    assert "| training deterministic | one | again | 124 | yes | - | - |" in text
    assert "| training deterministic | three | again | 124 | **no** | model.a | nll_loss2d |" in text
    assert "| gloo | 1 | over both | 4 | 1.0000, 0.5000 | - | - |" in text
    assert "| 8 | bf16 | strong | 812 (800 to 820) | - | 812 (800 to 820) | - | 1.050 |" in text
    assert "| 900 | bf16 | strong | too few | - |" in text
    assert "| processor | 60 | 812 (800 to 820) | yuv420p | - | - | - |" in text
    assert "| cuda | 60 | 812 (800 to 820) | nv12 | 50 | 0.012, 1 | - |" in text
    assert "| h264_nvenc | - | - | - | - | - | h264_nvenc does not work here: \\| no such library |" in text
    assert "| encode overlay | encode overlay 97 % of 1 | - |" in text
    assert "None" not in text
    assert "```\nE  assert\n```" in text


def test_every_row_has_the_cells_of_its_head() -> None:
    cells = 0
    for line in report.markdown([hand_made(), hand_made()]).splitlines():
        count = line.replace("\\|", "").count("|")
        assert not (cells and count) or count == cells, line
        cells = count
    # Sections of one kind share one table, whose head comes once in each document.
    assert report.markdown([hand_made()]).count("| backend | model |") == 1


def test_several_results_are_merged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("NVIDIA H200", "NVIDIA L4"):
        (tmp_path / f"{name}.json").write_text(json.dumps(hand_made() | {"gpu": name}))
    assert gpu_check.main(["--merge", *map(str, sorted(tmp_path.glob("*.json")))]) == 0
    out = capsys.readouterr().out
    assert out.index("# NVIDIA H200") < out.index("# NVIDIA L4")


def network(size: tuple[int, int], widths: tuple[int, ...], classes: int = 1) -> ModelSpec:
    return dataclasses.replace(fake_spec(size, classes), widths=widths)


CLASSIC = (64, 128, 256, 512, 1024)


@pytest.mark.parametrize(
    ("size", "width", "images"),
    [
        ((160, 240), 64, 13_399),
        ((256, 256), 64, 7_851),
        ((512, 512), 64, 1_963),
        ((160, 240), 32, 48_900),
        ((160, 240), 16, 141_800),
    ],
)
def test_the_floor_is_what_was_derived_by_hand(size: tuple[int, int], width: int, images: int) -> None:
    """Layer by layer, of the classic network with two classes on an H200, its weights left out."""
    spec = network(size, tuple(width << level for level in range(5)), 2)
    assert networks.floor(spec, 10**9, "NVIDIA H200") == pytest.approx(images, rel=0.015)


def test_the_floor_is_lower_with_slower_memory_and_where_a_batch_shares_weights_with_few() -> None:
    spec = network((160, 240), CLASSIC)
    h200, h100 = "NVIDIA H200", "NVIDIA H100 80GB HBM3"
    rates = [networks.floor(spec, batch, h100) or 0 for batch in sections.SIZES]
    assert rates == sorted(rates)
    assert rates[0] < 0.95 * rates[-1]
    assert (networks.floor(spec, 32, h100) or 0) < (networks.floor(spec, 32, h200) or 0)
    wide = network((160, 240), (16, 32, 64, 128, 256))  # bound by memory: nearly as much slower as that is
    slower = (networks.floor(wide, 32, h200) or 0) / (networks.floor(wide, 32, h100) or 1)
    assert 1.2 < slower < 4.3 / 3.0


@pytest.mark.parametrize(("driver", "known"), [(H200, True), (H100, True), (OTHER, False), (None, False)])
def test_a_share_of_the_floor_is_given_only_where_the_floor_is_known(
    monkeypatch: pytest.MonkeyPatch, driver: gpu.Driver | None, known: bool
) -> None:
    monkeypatch.setattr(gpu, "driver", lambda: driver)
    spec = network((160, 240), CLASSIC)
    rates = {"batch": 32, "images_per_s": measure.spread([6_000])}
    found = sections.speed(rates, spec)
    if known:
        assert driver is not None
        most = networks.floor(spec, 32, driver.gpus[0].name)
        assert most is not None
        assert found["share_of_floor"] == pytest.approx(6_000 / most)
        assert found["floor_images_per_s"] == most
    else:
        assert (found["share_of_floor"], found["floor_images_per_s"]) == (None, None)
    assert found["tflops"] == pytest.approx(6_000 * 56.4e9 / 1e12, rel=0.01)


# Models -----------------------------------------------------------------------------------------------------


def test_export_writes_graphs_that_can_be_built_without_pytorch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("onnxscript")
    monkeypatch.setattr(networks, "MODELS", {"4class": (4, (4, 8, 16))})
    monkeypatch.setattr(networks, "SIZE", SHAPE[:2])
    folder = tmp_path / "with [brackets]"
    assert gpu_check.main(["--export", str(folder), "--models", "4class"]) == 0
    (model, forms), *others = networks.graphs(str(folder)).items()
    assert (model, others, sorted(forms)) == ("4class", [], ["fp16", "fp32"])
    typed, weak = onnx_model.read(forms["fp16"]), onnx_model.read(forms["fp32"])
    assert (typed.precision, typed.opset) == ("fp16", 18)
    assert (weak.precision, weak.opset, weak.ir_version) == ("fp32", 17, 8)
    assert typed.spec.name == weak.spec.name == "4class"
    for path in forms.values():
        assert store.unpack(os.path.splitext(path)[0] + ".npz").pictures.shape[1:] == SHAPE
    # The arithmetic is counted as PyTorch counts it, and as the graph has it.
    loaded = pytorch._load("4class", str(folder))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        loaded.model(torch.zeros(1, 3, *loaded.spec.input_size))
    in_graph = sum(convolution.flops for convolution in typed.convolutions.values())
    assert networks.flops(loaded.spec) == counter.get_total_flops() == in_graph > 10**6


def test_graphs_are_found_by_what_their_models_call_themselves(tmp_path: Path) -> None:
    for name in ("default-448x672-fp16-opset18-e0.onnx", "classic-160x240-fp32-opset17-e8.onnx", "x.onnx"):
        (tmp_path / name).touch()
    assert {model: list(forms) for model, forms in networks.graphs(str(tmp_path)).items()} == {
        "bundled": ["fp32"],
        "default": ["fp16"],
    }
    assert networks.is_trained("default")
    assert not networks.is_trained("4class")


def test_the_arithmetic_of_a_network_on_an_encoder_is_counted_too() -> None:
    """With its depthwise convolutions; and each weight is read once for a batch."""
    spec = encoder_spec()
    network = build_network(spec).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, *spec.input_size))
    assert networks.flops(spec) == counter.get_total_flops() > 10**6
    weights = [each for name, each in network.named_parameters() if each.dim() == 4]
    assert sum(layer.weights for layer in networks.layers(spec)) == 2 * sum(each.numel() for each in weights)
    first, height, width = networks.layers(spec)[0], *spec.input_size
    assert first.bytes == 3 * height * width + 2 * 32 * height * width // 4
    one, many = (networks.floor(spec, batch, "NVIDIA H200") or 0 for batch in (1, 64))
    assert 0 < one < many


# On a GPU made of host memory -------------------------------------------------------------------------------


class Backend(HostBackend):
    """A `HostBackend` in memory that others use, too."""

    def __init__(self, memory: HostMemory, batch_size: int = 8) -> None:
        super().__init__(fake_spec(SHAPE[:2]), batch_size=batch_size)
        self.memory = memory
        self.program = Brightness(memory, SHAPE)


def test_right_masks_have_no_problems(reference: Reference) -> None:
    memory = HostMemory()
    with measure.count_launches(memory) as launches, Backend(memory) as backend:
        found = measure.exercise(backend, reference)
    assert measure.problems(found, 0.999) == []
    assert set(found["ragged"]) == {"1", "2", "3", "4", "7", "8"}
    assert launches[0] == memory.launches > 0
    assert found["parity"]["pictures"] == 20
    with Backend(memory) as backend:
        assert measure.exercise(backend, reference, rounds=1)["digest"] == found["digest"]
    assert launches[0] < memory.launches  # counted inside the block only


def wrong_values(pictures: np.ndarray) -> np.ndarray:
    return 255 - brightness(pictures)


def by_position(pictures: np.ndarray) -> np.ndarray:
    return brightness(pictures) + np.arange(len(pictures), dtype=np.uint8)[:, None, None] // 4


class Astray(FakeBackend):
    """Gives another's maps to whoever is not the first thread."""

    def _infer(self, pictures: Any) -> np.ndarray:
        maps = brightness(pictures)
        return maps if threading.current_thread() is threading.main_thread() else np.roll(maps, 1, axis=0)


@pytest.mark.parametrize(
    ("backend", "problem"),
    [
        (FakeBackend(fake_spec(SHAPE[:2]), wrong_values, batch_size=8), "Dice"),
        (
            FakeBackend(fake_spec(SHAPE[:2]), by_position, batch_size=8),
            "batches of 1, 2, 3, 4, 7 give other bytes",
        ),
        (Astray(fake_spec(SHAPE[:2]), batch_size=8), "maps differ with 3 threads"),
    ],
)
def test_wrong_masks_are_found(reference: Reference, backend: FakeBackend, problem: str) -> None:
    with backend:
        found = measure.problems(measure.exercise(backend, reference), 0.999)
    assert any(problem in each for each in found), found


def test_an_error_in_a_thread_is_raised(reference: Reference) -> None:
    with Backend(HostMemory()) as backend:
        pictures, _ = measure.repeated(reference, 9)  # one too many
        with pytest.raises(Exception, match="1 to 8 pictures"):
            measure.hammer(backend, pictures, 6)


def test_all_batches_are_run(reference: Reference) -> None:
    backend = FakeBackend(fake_spec(SHAPE[:2]), batch_size=4)
    with backend:
        found = measure.pipelined(backend, reference, rounds=2, batches=10)
        assert backend.batches == [4] * (2 * 10 + 3)
    assert found["images_per_s"]["min"] <= found["images_per_s"]["median"] <= found["images_per_s"]["max"]
    for rate, milliseconds in zip(
        found["images_per_s"]["rounds"], found["ms_per_batch"]["rounds"], strict=True
    ):
        assert rate == pytest.approx(4000 / milliseconds)


@pytest.mark.parametrize("graphs", [True, False])
def test_the_engine_alone_is_timed_and_leaves_nothing_behind(reference: Reference, graphs: bool) -> None:
    memory = HostMemory(graphs=graphs)
    program = Brightness(memory, SHAPE)
    runs: list[int] = []
    program.kernel = lambda pictures: runs.append(len(pictures)) or brightness(pictures)  # type: ignore[func-returns-value]
    found = measure.engine_only(memory, program, SHAPE, reference, 6, rounds=2, batches=10)
    assert set(found) == {"graph", "plain", "graph_late"}
    assert (found["plain"]["clock"], found["plain"]["batch"]) == ("wall", 6)
    assert ("images_per_s" in found["graph"], "reason" in found["graph"]) == (graphs, not graphs)
    assert runs == [6] * (1 + 22 * (3 if graphs else 1))
    assert not memory.alive
    assert program.open == 0


def test_growth_has_three_points(reference: Reference) -> None:
    memory = HostMemory(2**24)
    with Backend(memory) as backend:
        points = measure.growth(backend, memory, reference, 40)
    assert [point["batches"] for point in points] == [4, 20, 40]
    assert len({point["gpu_free"] for point in points}) == 1
    assert all(point["resident"] > 10**7 for point in points)


def test_resident_memory_is_known_without_psutil(monkeypatch: pytest.MonkeyPatch) -> None:
    with_psutil = measure.resident()
    monkeypatch.setitem(sys.modules, "psutil", None)
    without = measure.resident()
    if not os.path.exists("/proc/self/status"):
        assert without is None
    else:
        assert without == pytest.approx(with_psutil, rel=0.2)


def test_starving_shows_smaller_batches_and_refusals_and_gives_all_back(reference: Reference) -> None:
    memory = HostMemory(2**23)
    found = measure.starve(lambda: Backend(memory, 64), memory, reference, (0.6, 0.3, 0.001), least=1024)
    slot = 64 * (32 * 48 * 4)
    assert found["needed"] == 3 * slot
    assert [entry.get("batch") for entry in found["starved"]] == [32, 16, None]
    assert len(found["starved"][0]["notes"]) == 1
    assert found["starved"][2]["kind"] == "DeviceOutOfMemory"
    assert found["starved"][0]["digest"] == found["alone"]["digest"] == found["after"]["digest"]
    assert found["free_after"] == found["free_before"] == 2**23
    assert not memory.alive
    sections.judge_starved(found)


def starved(**changes: Any) -> dict[str, Any]:
    entry = {"asked": 32, "batch": 32, "dice": 0.9999, "digest": "a", "notes": []}
    return {"alone": entry, "starved": [entry | changes], "after": entry}


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (starved(), "memory never ran out"),
        (starved(batch=16, dice=0.9), "Dice 0.90000"),
        (starved(refused="no", kind="DeviceOutOfMemory"), "no smaller batch was ever taken"),
        (starved(refused="no context", kind="BackendError"), "BackendError: no context"),
        (
            starved(batch=16) | {"after": {"refused": "still none"}},
            "after it the maps are not what they were",
        ),
    ],
)
def test_bad_ends_of_starving_are_named(data: dict[str, Any], problem: str) -> None:
    with pytest.raises(Exception, match=problem):
        sections.judge_starved(data)


def test_where_no_smaller_batch_can_save_memory_a_refusal_is_right() -> None:
    """A context of TensorRT 8.6 takes what the largest batch of its profile needs."""
    refused = starved(refused="no", kind="DeviceOutOfMemory")
    sections.judge_starved(refused, lends_memory=False)
    for data, problem in (
        (starved(), "memory never ran out"),
        (starved(refused="no context", kind="BackendError"), "BackendError: no context"),
        (refused | {"after": {"refused": "still none"}}, "after it the maps are not what they were"),
    ):
        with pytest.raises(BackendError, match=problem):
            sections.judge_starved(data, lends_memory=False)


def test_held_memory_is_given_back_after_an_error() -> None:
    memory = HostMemory(10_000)

    def hold() -> None:
        with measure.hold_memory(memory, 50_000, least=1024) as taken:
            assert 10_000 - 2048 < taken == memory.used
            raise KeyError

    with pytest.raises(KeyError):
        hold()
    assert memory.used == 0
