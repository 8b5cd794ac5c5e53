"""One picture whose outputs grow, and appear under their names all at once or not at all.

Outputs grow under temporary names, and are renamed once all of them are whole, so that a run that is stopped
or killed leaves none: the next one begins this picture anew.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from unet_batch.inference.segmenter import as_error
from unet_batch.media.threads import single_threaded_cv2
from unet_batch.pipeline import Failed, Pipeline, StageStats
from unet_batch.run.observe import Stop
from unet_batch.types import Item


@dataclass
class WholeResult:
    """What became of a picture.

    Attributes:
        outputs: the bytes of each kind's file; empty unless it is finished.
        notes: what people should know of how it was read.
        complete: all of it is done.
        stages: work of each stage.
    """

    outputs: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    complete: bool = False
    stages: list[StageStats] = field(default_factory=list)


class Growing(Protocol):
    """A picture on its way: how its outputs are begun, filled and finished.

    Attributes:
        item: the picture.
        notes: what people should know of how it was read, once it was.
        total: how much there is to do.
        source: what reports call the stage of the pipeline's source.
    """

    item: Item
    notes: list[str]
    total: int
    source: str

    def open_outputs(self, stack: ExitStack) -> None:
        """Begin a file for each kind, which `stack` will close and rename, or remove."""

    def pipeline(self) -> Pipeline[Any, Any]:
        """From the source to what is taken."""

    def take(self, value: Any, /) -> int:
        """Take what comes out of the pipeline; returns how much is done."""

    def finish(self) -> dict[str, int]:
        """End each kind's file; returns its bytes."""


class _Stopped(Exception):
    """Somebody has asked to stop."""


def segment_whole(work: Growing, on_progress: Callable[[int, int], None], stop: Stop | None) -> WholeResult:
    """Segment a picture; where it is stopped, nothing of it is left.

    Args:
        work: the picture.
        on_progress: called in this thread with how much is done, and of how much.
        stop: makes it end early when called.

    Raises:
        ItemError: an error that is none of ours becomes one: the output folder is not to blame for it.
    """
    stop, result, done = stop or Stop(), WholeResult(), 0
    try:
        with ExitStack() as stack:
            work.open_outputs(stack)
            try:
                with single_threaded_cv2(), work.pipeline() as values:
                    stop.watch(values.stop)
                    try:
                        for value in values:
                            done = work.take(value)
                            on_progress(done, work.total)
                    finally:
                        source, *others = values.stats
                        result.stages = [replace(source, name=work.source), *others]
                if stop.reason and done < work.total:
                    raise _Stopped
                result.outputs = work.finish()
            except (OSError, ValueError) as error:
                raise as_error(Failed("render", error, work.item)) from error
    except _Stopped:
        return result
    result.notes, result.complete = tuple(work.notes), True
    return result
