"""Pictures that are segmented by themselves, one by one: too large for memory, or of several pages."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from unet_batch.errors import BackendError, ImageError, VideoError
from unet_batch.files import naming, remote
from unet_batch.inference.segmenter import Segmenter
from unet_batch.run import giant, stack
from unet_batch.run.observe import Stop
from unet_batch.run.plan import RunPlan
from unet_batch.types import Item

if TYPE_CHECKING:
    from unet_batch.run.whole import WholeResult


class Work(NamedTuple):
    """How a picture is segmented by itself.

    Attributes:
        segment: does it, telling how much is done and of how much; stops early when told to.
        file: where a kind of output of a key goes, relative to the output folder.
    """

    segment: Callable[[Callable[[int, int], None], Stop], WholeResult]
    file: Callable[[str, str], str]


def find_work(item: Item, plan: RunPlan, segmenter: Segmenter) -> Work | None:
    """How an item is segmented by itself; None if it goes with all others. Looks at its header."""
    outputs, pages = plan.outputs, plan.options.pages
    if pages is not None and (found := stack.look(item, segmenter)) is not None:
        work = partial(stack.segment, item, found, pages, segmenter, outputs)
        return Work(work, partial(stack.file_of, outputs))
    if (size := giant.giant_size(item, segmenter, outputs)) is not None:
        return Work(partial(giant.segment, item, size, segmenter, outputs), outputs.file)
    return None


def copy_here(item: Item) -> None:
    """Copy an item's file to this machine if it lies behind an address, until `remote.release`.

    Raises:
        ImageError, VideoError: it cannot be read.
        OutputError: there is no place for it.
    """
    if not remote.is_remote(item.path) or naming.is_live(item.path):
        return
    remote.fetch(item.path)
    try:
        remote.open_file(item.path).close()  # raises what went wrong
    except OSError as error:
        kind = VideoError if item.is_clip else ImageError
        raise kind(f"{item.path}: cannot be read: {error.strerror or error}") from error


def stage_of(error: Exception) -> str:
    """The stage that an error of `Work.segment` is told of."""
    if isinstance(error, ImageError):
        return "decode"
    return "infer" if isinstance(error, BackendError) else "render"
