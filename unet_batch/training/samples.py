"""Load pictures and masks from files into augmented batches.

A sample is decoded, resized to the size it is kept at, and cached as long as memory allows; the others are
decoded again in each epoch. All cores decode ahead of the step that is running.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
from torch import Tensor

from unet_batch.datasets.dataset import Dataset, Pair
from unet_batch.datasets.encoding import VOID
from unet_batch.media import geometry
from unet_batch.media.images import AUTO, Range
from unet_batch.media.threads import single_threaded_cv2
from unet_batch.pipeline import cpu_count
from unet_batch.training import augment

if TYPE_CHECKING:
    from unet_batch.types import Pixels, Placement, Size

# Kept at twice the network's size, zooming and turning need not invent detail, and sampling at half scale is
# the 2x2 mean, the same as the area resampling at run time.
OVERSAMPLING = 2
BATCHES_AHEAD = 3  # batches decoded ahead of the one in use


@dataclass(frozen=True, eq=False)
class Sample:
    """One pair as it is kept.

    Attributes:
        picture: uint8 (h, w, channels), letterboxed.
        target: uint8 (h, w): of one class its coverage, 0..255, which a probability gives as it is, one of
            16 bits to the nearest 255th; of several the ids, VOID where unknown and in the padding.
        known: uint8 (h, w), of one class: 255 where the coverage counts, 0 in void and padding; of several
            empty.
    """

    picture: Pixels
    target: Pixels
    known: Pixels


class Samples:
    """The pairs of a dataset, at one size; may be used by several threads.

    Args:
        dataset: which says how masks are read.
        pairs: the pairs, numbered from 0.
        size: (height, width) of the network's input.
        scale: samples are kept at `scale` times this.
        budget: bytes that may be cached.
        value_range: which values of a picture are black and white.
        channels: of the network's input.
    """

    def __init__(
        self,
        dataset: Dataset,
        pairs: Sequence[Pair],
        size: Size,
        scale: int,
        budget: int,
        value_range: Range = AUTO,
        channels: int = 3,
    ) -> None:
        self.dataset, self.pairs, self.size, self.scale = dataset, pairs, size, scale
        self.value_range = value_range
        self.stored: Size = (size[0] * scale, size[1] * scale)
        self._channels = channels
        self._one = len(dataset.classes.names) == 1
        self._cache: dict[int, Sample] = {}
        self._free_bytes = budget
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, number: int) -> Sample:
        """Read a sample, from the cache if it is there.

        Raises:
            ImageError: a file cannot be read, or the mask does not fit its picture.
        """
        kept = self._cache.get(number)
        if kept is not None:
            return kept
        sample = self.decode(self.pairs[number])
        with self._lock:
            weight = sample.picture.nbytes + sample.target.nbytes + sample.known.nbytes
            if number not in self._cache and weight <= self._free_bytes:
                self._free_bytes -= weight
                self._cache[number] = sample
        return sample

    def decode(self, pair: Pair) -> Sample:
        """Read a pair and resize it to the stored size, without the cache.

        Raises:
            ImageError: see `__getitem__`.
        """
        enough = (OVERSAMPLING * self.size[0], OVERSAMPLING * self.size[1])
        picture = self.dataset.read_picture(pair, enough, self.value_range)
        mask = self.dataset.decode_mask(pair, picture.size)
        ids = mask.ids
        if picture.missing is not None:  # nothing is to be learnt where the photo's file has no value
            ids = np.where(geometry.resize_flags(picture.missing, picture.size), VOID, ids).astype(np.uint8)
        placement = geometry.place(picture.size, self.size)
        enlarged = self._scale_placement(placement)
        # What has too few pixels for the size it is kept at is brought to the network's, and each pixel is
        # doubled: enlarged smoothly and averaged again, it would be softer in training than it is at run
        # time.
        repeat = self.scale if min(np.subtract(picture.size, enlarged.content)) < 0 else 1
        sample = self._letterbox(picture.pixels, ids, mask.levels, placement if repeat > 1 else enlarged)
        if repeat == 1:
            return sample
        return Sample(
            *(
                part.repeat(repeat, 0).repeat(repeat, 1)
                for part in (sample.picture, sample.target, sample.known)
            )
        )

    def _letterbox(self, picture: Pixels, ids: Pixels, levels: Pixels | None, placement: Placement) -> Sample:
        """Resize a picture (h, w, channels), its ids and levels (H, W), and pad them to the input's size."""
        pixels = geometry.to_network(picture, placement, channels=self._channels)
        ids = geometry.cover(ids, placement)
        none = np.empty((0, 0), np.uint8)
        if not self._one:
            target = np.full(placement.network, VOID, np.uint8)
            content = geometry.content_of(target, placement)
            cv2.resize(ids, placement.content[::-1], dst=content, interpolation=cv2.INTER_NEAREST_EXACT)
            return Sample(pixels, target, none)
        target, known = np.zeros(placement.network, np.uint8), np.zeros(placement.network, np.uint8)
        if levels is None:
            shares = (ids == 1).astype(np.uint8) * 255
        else:
            levels = geometry.cover(levels, placement)
            shares = np.where(ids == VOID, 0, levels).astype(np.uint8, copy=False)
        covered = geometry.resize_map(shares, placement.content)
        visible = np.full(placement.content, 255, np.uint8)
        if (ids == VOID).any():
            visible = geometry.resize_map((ids != VOID).astype(np.uint8) * 255, placement.content)
            # Of what is known of the pixel
            share = covered * (255 / np.maximum(visible, 1).astype(np.float32))
            covered = np.where(visible >= 128, np.rint(share).clip(max=255), 0).astype(np.uint8)
            visible = np.where(visible >= 128, 255, 0).astype(np.uint8)
        geometry.content_of(target, placement)[:] = covered
        geometry.content_of(known, placement)[:] = visible
        return Sample(pixels, target, known)

    def _scale_placement(self, placement: Placement) -> Placement:
        """Scale a placement in the network's input to one in the stored sample."""
        height, width = placement.content
        return replace(
            placement,
            network=self.stored,
            top=placement.top * self.scale,
            left=placement.left * self.scale,
            content=(height * self.scale, width * self.scale),
        )


@dataclass(frozen=True, eq=False)
class Batch:
    """A batch on the training device: pictures and targets as of `augment.apply`, and the pairs' numbers."""

    pictures: Tensor
    targets: Tensor
    numbers: tuple[int, ...]


def memory_budget() -> int:
    """Bytes that cached samples may take: a third of the machine's or job's memory, half of what is free."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 8 * 2**30
    free = total
    with suppress(OSError, ValueError), open("/proc/meminfo", encoding="ascii") as file:
        free = next(1024 * int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
    for limit in _job_limits():
        with suppress(OSError, ValueError), open(limit, encoding="ascii") as file:  # "max": no limit
            total = min(total, int(file.read()))
    return min(total // 3, free // 2)


def _job_limits() -> list[str]:
    """List the files that may hold the memory limit of this container or batch job."""
    files = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
    with suppress(OSError), open("/proc/self/cgroup", encoding="utf-8") as file:
        for line in file:
            _, kinds, path = line.rstrip("\n").split(":", 2)
            root, name = (
                ("/sys/fs/cgroup", "memory.max")
                if not kinds
                else ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            )
            if not kinds or "memory" in kinds.split(","):
                parts = [part for part in path.split("/") if part]
                files += ["/".join([root, *parts[:depth], name]) for depth in range(1, len(parts) + 1)]
    return files


def batches(
    samples: Samples,
    order: Sequence[Sequence[int]],
    transform: Callable[[int], augment.Transform],
    device: torch.device,
    size: Size | None = None,
    paste: Callable[[int], augment.Paste | None] = lambda number: None,
) -> Generator[Batch, None, None]:
    """Load samples, move them to the device and augment them, batch after batch.

    Args:
        samples: where they come from.
        order: numbers of the samples of each batch; beyond the last they begin again, for more windows of the
            same pictures.
        transform: gives the transform of the sample of a number.
        device: where the batches go.
        size: (H, W) that the transforms lead to; None for that of the samples.
        paste: gives what is pasted into the sample of a number, if anything.

    Raises:
        ImageError: of the first sample that cannot be read, when its turn comes.
    """
    waiting: deque[tuple[list[Future[Sample]], dict[int, augment.Paste]]] = deque()
    with ExitStack() as stack:
        stack.enter_context(single_threaded_cv2())
        pool = ThreadPoolExecutor(cpu_count(), thread_name_prefix="load")
        stack.callback(pool.shutdown, cancel_futures=True)
        ahead = iter(order)
        for numbers in order:
            while len(waiting) < BATCHES_AHEAD and (later := next(ahead, None)) is not None:
                pasted = {place: found for place, number in enumerate(later) if (found := paste(number))}
                wanted = [number % len(samples) for number in later]
                wanted += [found.number for found in pasted.values()]
                waiting.append(([pool.submit(samples.__getitem__, number) for number in wanted], pasted))
            futures, pasted = waiting.popleft()
            loaded = [future.result() for future in futures]
            transforms = [transform(number) for number in numbers]
            transforms += [found.transform for found in pasted.values()]
            pictures, targets = augment.apply(
                *_stack(loaded, device), transforms=transforms, size=size or samples.size
            )
            count = len(numbers)
            if pasted:
                augment.paste(pictures, targets, pictures[count:], targets[count:], list(pasted))
            yield Batch(pictures[:count], targets[:count], tuple(numbers))


def _stack(samples: Sequence[Sample], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures, targets and known of samples, each as one tensor on the device."""
    pictures, targets, known = (
        torch.from_numpy(np.stack([getattr(sample, part) for sample in samples]))
        for part in ("picture", "target", "known")
    )
    if device.type == "cuda":
        pictures, targets, known = (
            part.pin_memory().to(device, non_blocking=True) for part in (pictures, targets, known)
        )
    return pictures, targets, known
