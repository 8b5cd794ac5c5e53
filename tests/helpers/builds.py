"""Builds of engines in processes of their own, for `Forked`: to their end, or to where they are killed."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import replace
from typing import Any

import pytest

from tests.helpers.engines import remember_exports
from unet_batch.build import BuildOptions, build_engine
from unet_batch.engine import store


def build_and_say(options: BuildOptions, go_on: str) -> None:
    """Print each stage as it begins, and at the end whether the engine was there.

    TensorRT's work begins when there is a file `go_on`.
    """
    remember_exports(pytest.MonkeyPatch())
    said: list[str] = []

    def say(stage: str, share: float) -> None:
        if stage not in said:
            said.append(stage)
            sys.stdout.write(f"{stage}\n")
            sys.stdout.flush()
        while stage.startswith("build with") and not os.path.exists(go_on):
            time.sleep(0.005)

    built = build_engine(options, say)
    sys.stdout.write("found\n" if built.was_there else "built\n")


def build_and_die(options: BuildOptions) -> None:
    """Be killed in the middle of TensorRT's work."""

    def kill(stage: str, share: float) -> None:
        if stage.startswith("build with") and share > 0.1:
            os.kill(os.getpid(), signal.SIGKILL)

    remember_exports(pytest.MonkeyPatch())
    build_engine(options, kill)


def build_and_die_late(options: BuildOptions) -> None:
    """Be killed between the plan and its sidecar.

    Every compilation of the same graph gives the same bytes here: another one stands for TensorRT's, which
    vary.
    """
    write = store.write_atomic

    def write_and_die(path: str, data: Any, **how: Any) -> None:
        write(path, data + b"x" if path.endswith(".plan") else data, **how)
        if path.endswith(".plan"):
            os.kill(os.getpid(), signal.SIGKILL)

    remember_exports(pytest.MonkeyPatch())
    store.write_atomic = write_and_die  # type: ignore[assignment]
    build_engine(replace(options, force=True))
