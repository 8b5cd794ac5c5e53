"""`train --devices`: the same command in a process for each device, started by torchrun.

torchrun tells each process its rank, waits for all of them, and passes signals on; `ranks` is what the
processes do with that. Added here: one error in place of everybody's, and an end to processes whose launcher
was killed.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from unet_batch.devices import parse_devices
from unet_batch.errors import TrainingError, UnetBatchError, UsageError
from unet_batch.inference.backends.torch import pick_device

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

_LAUNCHER = "UNET_BATCH_LAUNCHER"  # the environment variable that holds its process number
_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"  # names the file from which torchrun takes a process's error
_PATIENCE = "600"  # seconds that torchrun leaves processes to finish a step and to save, in place of 30
_SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT")  # that torchrun passes on


def choose_devices(text: str, device: str | None) -> tuple[str, ...]:
    """What `--devices` stands for on this machine, a name for each process; () is one process that chooses.

    Args:
        text: the option's value.
        device: the value of `--device`.

    Raises:
        UsageError: it cannot be read, or both options are given.
        BackendUnavailable: a device does not exist.
    """
    names = parse_devices(text)
    if device is not None:
        raise UsageError(f"--devices {text} and --device {device}", hint="give one of them")
    if is_launched():  # which sees the devices that its launcher has left to it
        return names
    if names == ("auto",):
        return tuple(f"cuda:{number}" for number in range(torch.cuda.device_count()))
    for name in names:
        pick_device(name)
    return names


def is_launched() -> bool:
    """Whether this process is one of several that train together."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def launch(devices: Sequence[str], words: Sequence[str]) -> None:
    """Run `unet-batch train` in a process for each device, until all have ended.

    Args:
        devices: two at least, all GPUs or all CPUs.
        words: of the command line, behind `train`.

    Raises:
        UnetBatchError: the error of the process that failed first.
        SystemExit: with the exit code of the processes, where they have said why; 130 after a signal.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import get_args_parser, run

    if devices[0] != "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = _visible(devices, os.environ.get("CUDA_VISIBLE_DEVICES"))
    os.environ[_LAUNCHER] = str(os.getpid())
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // len(devices))))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", _PATIENCE)
    parser = get_args_parser()
    options = ["--standalone", "--nproc-per-node", str(len(devices)), "--local-addr", "localhost"]
    if "--signals-to-handle" in parser.format_help():  # newer ones: what nohup ignores stays ignored
        options += ["--signals-to-handle", ",".join(_not_ignored())]
    logging.disable(logging.CRITICAL)  # it speaks of its own doing
    try:
        with tempfile.TemporaryDirectory(prefix="unet-batch-") as folder:
            options += ["--log-dir", folder]
            arguments: Any = parser.parse_args([*options, "-m", "unet_batch", "train", *words])
            run(arguments)  # type: ignore[no-untyped-call]
    except SignalException:
        raise SystemExit(130) from None
    except ChildFailedError as error:
        _fail([*error.failures.values()], devices)
    finally:
        logging.disable(logging.NOTSET)


def _visible(devices: Sequence[str], visible: str | None) -> str:
    """`CUDA_VISIBLE_DEVICES` that shows some of the GPUs which it shows now."""
    shown = visible.split(",") if visible else None
    numbers = [int(name.partition(":")[2]) for name in devices]
    return ",".join(shown[number] if shown else str(number) for number in numbers)


def _not_ignored() -> list[str]:
    names = [name for name in _SIGNALS if hasattr(signal, name)]
    return [name for name in names if signal.getsignal(getattr(signal, name)) is not signal.SIG_IGN]


def _fail(failures: Sequence[ProcessFailure], devices: Sequence[str]) -> None:
    """Raise what made the processes fail: one that loses another fails, too, so the reason comes first."""

    def rank(failure: ProcessFailure) -> tuple[int, float]:
        record, ended = _record(failure), failure.exitcode < 0
        if record.get("is_ours"):
            kind = 0
        elif ended:  # by torchrun, with SIGTERM, after another has failed
            kind = 4 if failure.exitcode == -signal.SIGTERM else 1
        else:
            kind = 3 if record else 2
        return kind, float(record.get("at", failure.timestamp))

    failure = min(failures, key=rank)
    record = _record(failure)
    if record.get("is_ours"):
        raise UnetBatchError(record["message"], hint=record["hint"])
    if failure.exitcode < 0:
        raise TrainingError(
            f"process {failure.local_rank + 1} of {len(devices)}, on {devices[failure.local_rank]}, "
            f"was ended by {failure.signal_name()}",
            hint="--resume goes on; where memory ran out: fewer --devices, or a smaller --batch-size",
        )
    if record:
        sys.stderr.write(record["traceback"])
    raise SystemExit(failure.exitcode)


def _record(failure: ProcessFailure) -> Mapping[str, Any]:
    """What a process has left by `launched`."""
    data = failure.error_file_data
    return data if "is_ours" in data else {}


@contextmanager
def launched() -> Iterator[None]:
    """In a process that `launch` has started: leave errors to it; when it has gone, end as after SIGTERM.

    Raises:
        SystemExit: for an error that was left.
    """
    launcher = os.environ.get(_LAUNCHER)
    if launcher is None or not is_launched():
        yield
        return
    over = threading.Event()

    def watch() -> None:
        while not over.wait(1.0):
            if os.getppid() != int(launcher):
                os.kill(os.getpid(), signal.SIGTERM)
                return

    thread = threading.Thread(target=watch, name="launcher watch")
    thread.start()
    try:
        yield
    except Exception as error:
        if not _leave(error):
            raise
        raise SystemExit(2 if isinstance(error, UnetBatchError) else 1) from None
    finally:
        over.set()
        thread.join()


def _leave(error: Exception) -> bool:
    """Write an error where torchrun looks for it; whether that went well."""
    data = {
        "is_ours": isinstance(error, UnetBatchError),
        "message": str(error) or type(error).__name__,
        "hint": getattr(error, "hint", ""),
        "traceback": "".join(traceback.format_exception(error)),
        "at": time.time(),
        "timestamp": int(time.time()),
    }
    try:
        with open(os.environ[_ERROR_FILE], "w", encoding="utf-8") as file:
            json.dump(data, file)
    except (OSError, KeyError):
        return False
    return True
