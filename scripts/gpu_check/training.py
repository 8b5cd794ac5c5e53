"""The sections that train: what `unet-batch train` does on a GPU, and what of it is equal to the bit."""

from __future__ import annotations

import functools
import itertools
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.gpu_check import measure, pytorch
from scripts.gpu_check.sections import ROOT, Data, Save, Skip, present
from unet_batch.errors import TrainingError

if TYPE_CHECKING:
    from unet_batch.training.plan import TrainingPlan

NEEDS = ("torch", "kornia", "simplejpeg", "PIL", "cv2", "safetensors")
"""Modules without which nothing is trained."""
COMMAND_NEEDS = ("matplotlib", "filelock", "click", "rich")
"""What the command line needs beside them."""
# Folders of pictures: each several times; each once; with masks of three ids
MANY, ONE, THREE = "many", "one", "three"
_FALLS = 0.9  # the last epoch's loss is below this share of the first one's
_AGREES = 0.05  # how far the loss of two processes may be from that of one: sums are taken in another order
_TAIL = 1500  # characters of a process that failed


# Pictures ---------------------------------------------------------------------------------------------------


def training_data(data: Data, save: Save, folder: str, drawn: int, copies: int, size: Sequence[int]) -> None:
    """Drawn photos and masks: decoding costs the same for a photo that comes again under another name."""
    import cv2

    from unet_batch.scenes import write_samples

    begun = time.perf_counter()
    paths = write_samples(os.path.join(folder, "drawn"), drawn, (size[0], size[1]), 5)
    for name, (number, path), copy in itertools.product((MANY, ONE, THREE), enumerate(paths), range(copies)):
        if copy and name != MANY:
            continue
        mask = os.path.join(folder, "drawn", "masks", f"{Path(path).stem}.png")
        # What stands before the last _ is the group: all copies of a photo are on the same side of the split.
        _link(path, os.path.join(folder, name, "photos", f"{number:03}_{copy:02}.jpg"))
        target = os.path.join(folder, name, "masks", f"{number:03}_{copy:02}.png")
        if name != THREE:
            _link(mask, target)
            continue
        ids = cv2.imread(mask, cv2.IMREAD_GRAYSCALE)
        assert ids is not None
        ids[ids > 0] = 1
        ids[: size[0] // 3][ids[: size[0] // 3] == 0] = 2  # a third class: what is above
        os.makedirs(os.path.dirname(target), exist_ok=True)
        cv2.imwrite(target, ids)
    data |= {
        "drawn": drawn,
        "size": list(size),
        "items": drawn * copies,
        "seconds": time.perf_counter() - begun,
    }


def _link(source: str, target: str) -> None:
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if not os.path.exists(target):
        try:
            os.link(source, target)
        except OSError:  # not every file system has them
            shutil.copyfile(source, target)


def _pictures(folder: str, name: str, device: str) -> str:
    """The folder of a name that `training_data` wrote, if there is something to train on it."""
    path = os.path.join(folder, name)
    if not os.path.isdir(path):
        raise Skip("no pictures were drawn")
    if device != "cpu":
        pytorch._torch()
    return path


def _make_plan(
    pictures: str, output: str, device: str, options: Mapping[str, Any], processes: int = 1
) -> TrainingPlan:
    """The plan of the command line.

    Args:
        pictures: a folder of them.
        output: the model.
        device: "cuda" or "cpu".
        options: of `training.plan.Options`; lists stand for tuples, as JSON has none.
        processes: how many train together.
    """
    from unet_batch.datasets.find import find_dataset
    from unet_batch.training.options import Options
    from unet_batch.training.plan import make_plan

    chosen: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in options.items()
    }
    return make_plan(find_dataset(pictures), output, Options(device=device, **chosen), processes=processes)


def _state(folder: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a training ends with: tensors, unrounded, and the progress."""
    from safetensors import safe_open

    with safe_open(os.path.join(folder, "state.safetensors"), framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        return tensors, json.loads(file.metadata()["progress"])


def _unequal(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Names of the tensors that are not equal to the bit."""
    import torch

    names = sorted({*one, *other})
    return [
        name
        for name in names
        if name not in one or name not in other or not torch.equal(one[name], other[name])
    ]


# Learning ---------------------------------------------------------------------------------------------------


def training(data: Data, save: Save, folder: str, device: str, precision: str, **options: Any) -> None:
    """A whole training in one precision: its losses, its speed and its memory."""
    pictures = _pictures(folder, MANY, device)
    import torch

    from unet_batch.training import loop

    with tempfile.TemporaryDirectory(dir=folder) as out:
        plan = _make_plan(
            pictures, os.path.join(out, "m.safetensors"), device, {**options, "precision": precision}
        )
        on_gpu = plan.device.type == "cuda"
        data |= {
            "precision": plan.precision,
            "widths": list(plan.spec.widths),
            "size": list(plan.spec.input_size),
        }
        data |= {
            "pictures": len(plan.train),
            "batch": plan.batch_size,
            "epochs": plan.options.epochs,
            "steps": plan.steps,
        }
        data["estimated_bytes"] = plan.weights_bytes + plan.batch_size * plan.activation_bytes
        save()
        speeds: dict[int, float] = {}

        def on_step(report: loop.StepReport) -> None:
            if report.step == report.steps:
                speeds[report.epoch] = report.speed

        outcome = loop.train(plan, on_step=on_step)
        tensors, progress = _state(plan.folder)
    data |= {"ended": outcome.ended, "history": list(outcome.history), "seconds": outcome.seconds}
    # The first epoch decodes the photos and looks for the fastest kernels.
    data["images_per_s"] = measure.spread(
        [speed for epoch, speed in speeds.items() if epoch > 1] or list(speeds.values())
    )
    data["peak_bytes"] = torch.cuda.max_memory_allocated() if on_gpu else None
    data |= {
        "scale": progress["scaler"].get("scale"),
        "skipped_steps": progress["step"] - progress["updates"],
    }
    finite = (bool(tensor.isfinite().all()) for tensor in tensors.values() if tensor.is_floating_point())
    data |= {"all_steps": progress["step"], "finite": all(finite)}
    judge_training(data)


def judge_training(data: Data) -> None:
    first, last = data["history"][0]["loss"], data["history"][-1]["loss"]
    wrong = [] if data["ended"] == "all epochs" else [f"it ended with {data['ended']!r}"]
    if not last < _FALLS * first:
        wrong.append(f"the loss went from {first:.4f} to {last:.4f}, below {_FALLS * first:.4f} expected")
    if not data["finite"]:
        wrong.append("some of its weights are not finite")
    if data["precision"] == "fp16" and not (data["scale"] and math.isfinite(data["scale"])):
        wrong.append(f"the scale of the gradients is {data['scale']}")
    if data["skipped_steps"] > data["all_steps"] / 3:
        wrong.append(f"{data['skipped_steps']} of {data['all_steps']} steps overflowed")
    if wrong:
        raise TrainingError("; ".join(wrong))


# Equal to the bit -------------------------------------------------------------------------------------------


def training_deterministic(data: Data, save: Save, folder: str, device: str, **options: Any) -> None:
    """Of one class and of three: the same twice, and stopped in the middle of an epoch and taken up."""
    folders = {name: _pictures(folder, name, device) for name in (ONE, THREE)}
    from unet_batch.training import loop

    options |= {"deterministic": True}
    data["equal"], wrong = [], []
    with tempfile.TemporaryDirectory(dir=folder) as out:
        for name, pictures in folders.items():
            plans = [
                _make_plan(pictures, os.path.join(out, f"{name}-{turn}.safetensors"), device, options)
                for turn in ("first", "again", "stopped")
            ]
            first, again, stopped = plans
            with warnings.catch_warnings(record=True) as heard:
                warnings.simplefilter("always")
                whole = loop.train(first)
                loop.train(again)
                stop = functools.partial(_asked_often, itertools.count(1), first.steps + 2)
                ended = loop.train(stopped, stop=stop).ended
                loop.train(stopped, resume=True)
            states = [_state(plan.folder)[0] for plan in plans]
            said = sorted(
                {str(each.message).splitlines()[0] for each in heard if "determin" in str(each.message)}
            )
            for what, state in (("the same seed again", states[1]), ("stopped and taken up", states[2])):
                entry: Data = {
                    "data": name,
                    "what": what,
                    "tensors": len(states[0]),
                    "differing": _unequal(states[0], state),
                    "steps": first.steps * first.options.epochs,
                    "epochs": len(whole.history),
                    "notes": said,
                }
                data["equal"].append(entry)
                if entry["differing"]:
                    wrong.append(
                        f"{name}, {what}: {len(entry['differing'])} of {len(states[0])} tensors differ"
                    )
            if ended != "interrupted":
                wrong.append(f"{name}: it could not be stopped, {ended}")
            save()
    if wrong:
        raise TrainingError("; ".join(wrong))


def _asked_often(asked: Iterator[int], times: int) -> bool:
    """Whether this was asked for so many times."""
    return next(asked) >= times


def training_killed(data: Data, save: Save, folder: str, device: str, **options: Any) -> None:
    """`unet-batch train` to its end, and another one killed after its first epoch and resumed."""
    pictures, options = _pictures(folder, ONE, device), options | {"deterministic": True}
    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory(dir=folder) as out:
        whole, killed = (os.path.join(out, f"{name}.safetensors") for name in ("whole", "killed"))
        begun = time.perf_counter()
        data["said"] = _run_python(_command(pictures, whole, device, options)).splitlines()[-12:]
        data |= {"seconds": time.perf_counter() - begun}
        save()
        state = os.path.join(os.path.splitext(killed)[0] + ".training", "state.safetensors")
        command = [sys.executable, *_command(pictures, killed, device, options)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while process.poll() is None and not os.path.exists(state):
                time.sleep(0.01)
        finally:
            process.kill()
            code = process.wait()
        if not os.path.exists(state) or code >= 0:
            raise TrainingError(f"the training that was to be killed ended with {code} before")
        data["killed_after"] = len(_state(os.path.dirname(state))[1]["history"])
        _run_python([*_command(pictures, killed, device, options), "--resume"])
        names = ("whole", "killed")
        states = [_state(os.path.join(out, f"{name}.training"))[0] for name in names]
        models = [load_file(os.path.join(out, f"{name}.safetensors")) for name in names]
        with open(os.path.join(out, "whole.training", "metrics.jsonl"), encoding="utf-8") as file:
            epochs = len(file.readlines())
        differing = [*_unequal(*states), *(f"model: {name}" for name in _unequal(*models))]
    what = f"killed after epoch {data['killed_after']} of {epochs}, then --resume"
    data["equal"] = [
        {
            "data": ONE,
            "what": what,
            "tensors": len(states[0]),
            "differing": differing,
            "epochs": epochs,
            "notes": [],
        }
    ]
    if not data["killed_after"] < epochs:
        raise TrainingError(f"it was killed after all {epochs} epochs: nothing was left to resume")
    if differing:
        raise TrainingError(f"{what}: {len(differing)} tensors differ: {', '.join(differing[:3])}")


def _command(pictures: str, output: str, device: str, options: Mapping[str, Any]) -> list[str]:
    """Arguments of Python that are `unet-batch train`."""
    command = ["-m", "unet_batch", "train", pictures, "-o", output, "--device", device]
    for name, value in options.items():
        text = (
            ("x" if name == "size" else ",").join(map(str, value))
            if isinstance(value, list | tuple)
            else str(value)
        )
        command += [f"--{name.replace('_', '-')}", *([] if value is True else [text])]
    return command


def _run_python(command: Sequence[str]) -> str:
    """What a process of Python printed, once it has ended well."""
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        print(done.stdout[-_TAIL:], done.stderr[-_TAIL:], sep="\n", flush=True)
        last = (done.stderr.strip() or done.stdout.strip() or "nothing was said").splitlines()[-1]
        raise TrainingError(f"{' '.join(command[:3])} ended with {done.returncode}: {last[:300]}")
    return done.stdout


# Two processes ----------------------------------------------------------------------------------------------


def training_processes(
    data: Data, save: Save, folder: str, device: str, shared: bool | None = None, **options: Any
) -> None:
    """Two processes reach the loss of one: with NCCL on a GPU each, or with gloo on the only one.

    On a GPU, BatchNorm goes over both processes; on a CPU each has its own, and the curves agree less
    closely.
    """
    pictures = _pictures(folder, ONE, device)
    import torch

    from unet_batch.training import loop

    if not torch.distributed.is_available():
        raise Skip(f"PyTorch {torch.__version__} was built without torch.distributed")
    gpus = torch.cuda.device_count() if device != "cpu" else 0
    shared = gpus == 1 if shared is None else shared
    if shared and not torch.distributed.is_gloo_available():
        raise Skip("one GPU, which NCCL does not share, and this PyTorch has no gloo")
    if not shared and (absent := [name for name in COMMAND_NEEDS if not present(name)]):
        raise Skip(f"{', '.join(absent)} not installed")
    with tempfile.TemporaryDirectory(dir=folder) as out:
        alone = _make_plan(pictures, os.path.join(out, "one.safetensors"), device, options)
        if alone.batch_size % 2:
            raise Skip(f"a batch of {alone.batch_size} is not shared by two processes")
        data |= {"gpus": gpus, "batch": alone.batch_size, "epochs": alone.options.epochs}
        data["how"] = (
            "gloo, both on one GPU"
            if shared and gpus
            else "nccl, a GPU each"
            if gpus
            else "gloo, on the processor"
        )
        data["batchnorm"] = "over both processes" if gpus else "in each process"
        data["one"] = [record["loss"] for record in loop.train(alone).history]
        save()
        two = os.path.join(out, "two.safetensors")
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        begun = time.perf_counter()
        if shared:
            _run_python([*launch, "-m", __name__, pictures, two, device, json.dumps(options)])
        else:
            _run_python([*launch, *_command(pictures, two, device, options)])
        data["seconds"] = time.perf_counter() - begun
        with open(os.path.join(out, "two.training", "metrics.jsonl"), encoding="utf-8") as file:
            data["two"] = [json.loads(line)["loss"] for line in file]
    if len(data["one"]) != len(data["two"]):
        raise TrainingError(f"{len(data['one'])} epochs of one process, {len(data['two'])} of two")
    data["apart"] = max(abs(two - one) / one for one, two in zip(data["one"], data["two"], strict=True))
    if not data["apart"] <= _AGREES:
        raise TrainingError(
            f"the loss of two processes is {data['apart']:.1%} away from that of one, at most {_AGREES:.0%} "
            f"expected"
        )


def share_a_gpu(pictures: str, output: str, device: str, options: str) -> None:
    """Train as one of two processes that torchrun started: the command would want a GPU for each."""
    import torch.distributed as dist

    from unet_batch.training import loop
    from unet_batch.training.ranks import Ranks

    dist.init_process_group("gloo")
    try:
        ranks = Ranks(dist.get_rank(), dist.get_world_size())
        plan = _make_plan(pictures, output, device, json.loads(options), processes=ranks.count)
        loop.train(plan, ranks=ranks)
    finally:
        dist.destroy_process_group()


# Loading ----------------------------------------------------------------------------------------------------


def training_loading(
    data: Data,
    save: Save,
    folder: str,
    device: str,
    batch_sizes: Sequence[int],
    steps: int,
    rounds: int,
    **options: Any,
) -> None:
    """Whether loading keeps up: steps fed from files and from remembered samples, against one batch."""
    pictures = _pictures(folder, MANY, device)
    from scripts.bench_train import seconds
    from unet_batch.pipeline import cpu_count
    from unet_batch.training import loop, step
    from unet_batch.training.ranks import Ranks
    from unet_batch.training.samples import OVERSAMPLING, Samples, memory_budget

    data |= {"cores": cpu_count(), "loading": []}
    for batch_size in batch_sizes:
        chosen = {**options, "batch_size": batch_size, "epochs": 100}
        plan = _make_plan(pictures, os.path.join(folder, "loading.safetensors"), device, chosen)
        count = min(steps, plan.steps - 1)
        entry: Data = {
            "batch": plan.batch_size,
            "precision": plan.precision,
            "augment": plan.options.augment,
            "steps": count,
        }
        data["loading"].append(entry)
        if count < 1:
            entry["reason"] = f"{len(plan.train)} pictures are too few"
            continue
        taken: dict[str, list[float]] = {"fixed": [], "remembered": [], "decoded": []}
        with step.deterministic_if_asked(plan):
            trainee = step.build_state(plan, Ranks())
            trainee.model.train()
            samples = Samples(plan.dataset, plan.train, plan.spec.input_size, OVERSAMPLING, memory_budget())
            batch = next(loop.training_batches(plan, Ranks(), samples, 0, 0))
            step.train_step(trainee, batch).item()
            with ThreadPoolExecutor(cpu_count()) as pool:
                for turn in range(rounds):
                    forgetful = Samples(plan.dataset, plan.train, plan.spec.input_size, OVERSAMPLING, 0)
                    taken["decoded"].append(seconds(trainee, plan, forgetful, turn, count))
                    list(pool.map(samples.__getitem__, loop.epoch_order(plan, turn)))
                    taken["remembered"].append(seconds(trainee, plan, samples, turn, count))
                    begun = time.perf_counter()
                    for _ in range(count):
                        step.train_step(trainee, batch).item()
                    taken["fixed"].append((time.perf_counter() - begun) / count)
        for name, each in taken.items():
            entry[name] = measure.spread([plan.batch_size / second for second in each])
            entry[f"{name}_times"] = statistics.median(
                a / b for a, b in zip(each, taken["fixed"], strict=True)
            )
        save()


FUNCTIONS: dict[str, Callable[..., None]] = {
    function.__name__: function
    for function in (
        training_data,
        training,
        training_deterministic,
        training_killed,
        training_processes,
        training_loading,
    )
}

if __name__ == "__main__":
    share_a_gpu(*sys.argv[1:])
