"""Crews of fake devices, in processes of their own."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from tests.helpers.models import fake_file
from tests.helpers.waiting import until
from unet_batch.errors import BackendError
from unet_batch.inference.segmenter import Segmenter
from unet_batch.run.crew import Crew, Device
from unet_batch.run.links import PipeLink
from unet_batch.testing import FakeBackend

DEADLY = 99
"""Brightness of a picture that ends the process that segments it."""


def brightness(pictures: np.ndarray) -> np.ndarray:
    return np.asarray(pictures.mean(axis=3) + 0.5, np.uint8)


def slowly(pictures: np.ndarray) -> np.ndarray:
    """The brightness, after 5 ms for each picture."""
    time.sleep(0.005 * len(pictures))
    return brightness(pictures)


def deadly(pictures: np.ndarray) -> np.ndarray:
    """The brightness; of a picture that is `DEADLY` all over, the end."""
    if any((picture == DEADLY).all() for picture in pictures):
        os.kill(os.getpid(), signal.SIGSEGV)
    return slowly(pictures)


def one_first(folder: Path, pictures: np.ndarray) -> np.ndarray:
    """The brightness; after one picture, not before there is a file `go` in a folder."""
    if (folder / "begun").exists():
        until((folder / "go").exists)
    (folder / "begun").touch()
    return slowly(pictures)


def broken(pictures: np.ndarray) -> np.ndarray:
    raise BackendError("the device fell off the bus")


def open_fake(answer: Callable[[np.ndarray], np.ndarray] = slowly) -> Segmenter:
    return Segmenter(FakeBackend(answer=answer), model=fake_file(), workers=2)


def crew(*answers: Callable[[np.ndarray], np.ndarray]) -> Crew:
    """A crew with a device for each answer, named `fake 1`, `fake 2`, ..."""
    devices = [
        Device(f"fake {number}", partial(open_fake, answer), PipeLink())
        for number, answer in enumerate(answers, 1)
    ]
    return Crew(devices)


def pids(hands: Crew) -> list[int]:
    """The processes of a crew."""
    return [link.pid for link in hands.links if isinstance(link, PipeLink)]
