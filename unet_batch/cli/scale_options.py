"""Options that say how many processes share a run, and where."""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from unet_batch.cli.command import Bundle, Option
from unet_batch.errors import UsageError

if TYPE_CHECKING:
    from unet_batch.inference.backends.select import Request
    from unet_batch.inference.segmenter import Segmenter
    from unet_batch.run.hands import Hands

    Opener = Callable[..., Segmenter]

_scale = functools.partial(Option, section="Scale")


def devices_of(text: str) -> tuple[str, ...]:
    """What --devices stands for, one for each process; of `auto` all GPUs: none where there are none.

    Raises:
        UsageError: it names no devices.
    """
    from unet_batch.devices import parse_devices

    found = parse_devices(text)
    if found != ("auto",):
        return found
    from unet_batch import gpu

    driver = gpu.driver()
    # On a CPU one process keeps the cores nearly as busy, and loads the model once (docs/scale.md)
    return tuple(f"cuda:{number}" for number in range(len(driver.gpus))) if driver is not None else ()


@dataclass(frozen=True)
class ScaleOptions:
    """How many processes share a run; see `unet-batch run --help`."""

    devices: str | None
    ray: str | None = None

    def names(self, device: str | None) -> tuple[str, ...]:
        """The devices, one for each process; none where this process is to do it all.

        Args:
            device: what --device says.

        Raises:
            UsageError: they are no devices, or --device names one, too.
        """
        if self.devices is None:
            return ()
        if device is not None:
            raise UsageError(
                f"--devices {self.devices} contradicts --device {device}", hint="leave one of them out"
            )
        return devices_of(self.devices)

    def check_pipe(self) -> None:
        """Raise UsageError if there is to be more than this process."""
        for option, value in (("--devices", self.devices), ("--ray", self.ray)):
            if value is not None:
                raise UsageError(f"{option} {value}: one picture goes through a pipe", hint="leave it out")

    @contextmanager
    def open(self, requests: list[Request], open_segmenter: Opener) -> Iterator[Hands]:
        """Who does the work: this process, or one for each device.

        Args:
            requests: the models.
            open_segmenter: gives a segmenter, given requests.

        Raises:
            UnetBatchError: as from `open_segmenter`.
        """
        from unet_batch.run.hands import Here

        if self.ray is not None:
            with self._open_cluster(self.ray, requests, open_segmenter) as hands:
                yield hands
            return
        names = self.names(requests[0].device)
        if len(names) < 2:
            device = names[0] if names else requests[0].device
            with open_segmenter(*(replace(request, device=device) for request in requests)) as segmenter:
                yield Here(segmenter)
            return
        from unet_batch.run.crew import Crew
        from unet_batch.run.links import local_devices

        if any(request.build is not None for request in requests):
            with open_segmenter(*requests):  # builds what there is to build, once
                pass
        built = [replace(request, build=None) for request in requests]
        with Crew(local_devices(names, built, open_segmenter)) as crew:
            yield crew

    @contextmanager
    def _open_cluster(self, address: str, requests: list[Request], open_segmenter: Opener) -> Iterator[Hands]:
        """The workers of a Ray cluster."""
        if self.devices is not None:
            raise UsageError(
                f"--ray {address} contradicts --devices {self.devices}",
                hint="leave --devices out: Ray knows the GPUs of its machines",
            )
        if any(request.build is not None for request in requests):
            raise UsageError(
                f"--ray {address} contradicts --build: an engine is built on the machine that runs it",
                hint="run `unet-batch build-engine` on a machine of each kind, with an --engines-dir that "
                "all share",
            )
        from unet_batch.cli.signals import finish_first
        from unet_batch.run.cluster import joined
        from unet_batch.run.crew import Crew

        with (
            finish_first(_leave, "", numbers=(signal.SIGTERM,)),  # until a run listens: Ray has to tidy up
            joined(address, requests, open_segmenter) as cluster,
            Crew(cluster.arrivals(), cluster.arrivals) as crew,
        ):
            yield crew


def _leave(name: str) -> None:
    raise SystemExit(128 + signal.Signals[name])


scale_options = Bundle(
    "scale",
    ScaleOptions,
    _scale(
        ["--devices"],
        metavar="WHICH",
        brief="Several GPUs, 0,1 or auto for all; or cpu:N processes.",
        help="Share the work between several GPUs, one process each: auto (all there are) or their numbers, "
        "0,1; or between N processes on the CPU, cpu:N.",
    ),
    _scale(
        ["--ray"],
        metavar="ADDRESS",
        brief="Several machines: a Ray cluster, auto or HOST:6379.",
        help="Share the work between the machines of a Ray cluster, one process for each GPU, or for each "
        "machine without: auto, HOST:6379, ray://HOST:10001; local tries it on this one.",
    ),
)
