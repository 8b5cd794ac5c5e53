"""One picture of several pages: each page goes through the network, and its outputs into stacks of pages.

    decode ──▶ place ──▶ infer ──▶ draw ──▶ write, in order
    the source's thread                     this thread

As with pictures that memory does not hold, outputs grow under temporary names and are renamed once all are
whole: a run that is stopped or killed leaves none, and the next one begins this picture anew.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from unet_batch.errors import ImageError
from unet_batch.files.atomic import replacing, translate
from unet_batch.files.outputs import KINDS, OutputTree
from unet_batch.inference.segmenter import PIXEL_BUDGET, Segmenter, as_error
from unet_batch.media import images
from unet_batch.media.threads import single_threaded_cv2
from unet_batch.pipeline import Failed, Pipeline, Stage, StageStats
from unet_batch.run.observe import Stop
from unet_batch.run.options import PageRange
from unet_batch.types import Frame, Item, Prediction

if TYPE_CHECKING:
    from numpy.typing import NDArray

SUFFIX = ".tif"


@dataclass
class StackResult:
    """What became of a picture.

    Attributes:
        outputs: the bytes of each kind's file; empty unless it is finished.
        pages: how many there were.
        notes: what people should know of how it was read.
        complete: all of it is done.
        stages: work of each stage.
    """

    outputs: dict[str, int] = field(default_factory=dict)
    pages: int = 0
    notes: tuple[str, ...] = ()
    complete: bool = False
    stages: list[StageStats] = field(default_factory=list)


def file_of(outputs: OutputTree, kind: str, key: str) -> str:
    """Where a stack goes, relative to the output folder and `/`-separated."""
    return outputs.file(kind, key).removesuffix(KINDS[kind].suffix) + SUFFIX


def look(item: Item, segmenter: Segmenter) -> images.Stack | None:
    """What the pages of an item are; None if it has one, or its header cannot be read."""
    try:
        stack = images.look_at_pages(item.path, max_pixels=segmenter.max_pixels, channels=segmenter.channels)
    except ImageError:  # told when it is read
        return None
    return stack if stack.count > 1 else None


def segment(
    item: Item,
    stack: images.Stack,
    pages: PageRange,
    segmenter: Segmenter,
    outputs: OutputTree,
    on_page: Callable[[int, int], None] = lambda done, total: None,
    stop: Stop | None = None,
) -> StackResult:
    """Segment the pages of a picture.

    Args:
        item: the picture.
        stack: as `look` says.
        pages: which of them.
        segmenter: open.
        outputs: what is wanted of it, and where it goes.
        on_page: called in this thread with how many pages are written, and of how many.
        stop: makes it end early when called; nothing is left then.

    Raises:
        ImageError: a page cannot be decoded.
        BackendError: inference failed.
        OutputError: an output cannot be written.
    """
    work, stop, result = _StackRun(item, stack, pages, segmenter, outputs), stop or Stop(), StackResult()
    try:
        with ExitStack() as opened:
            for kind in outputs.kinds:
                path = os.path.join(outputs.folder, *file_of(outputs, kind, item.key).split("/"))
                work.temporary[kind] = opened.enter_context(replacing(path))
            try:
                work.carry_out(on_page, stop, result)
            except (OSError, ValueError) as error:  # nothing that the output folder could be blamed for
                raise as_error(Failed("render", error, item)) from error
            result.outputs = {kind: os.path.getsize(path) for kind, path in work.temporary.items()}
    except _Stopped:
        return result
    result.notes, result.complete = tuple(work.notes), True
    return result


class _Stopped(Exception):
    """Somebody has asked to stop."""


@dataclass(frozen=True, eq=False)
class _Page:
    """A page, as it was decoded, placed, seen by the network or drawn.

    Attributes:
        number: counted from 1.
        value: a picture, a frame, a prediction, or the pixels of each kind of output.
        dpi: of the page.
    """

    number: int
    value: Any
    dpi: tuple[float, float] | None

    @property
    def weight(self) -> int:
        """Bytes of pixels it holds."""
        value = self.value
        if isinstance(value, dict):
            return sum(pixels.nbytes for pixels in value.values())
        more = 0
        if isinstance(value, Prediction):
            more, value = value.map.nbytes, value.frame
        tensor = value.tensor.nbytes if isinstance(value, Frame) and value.tensor is not None else 0
        return int(more + tensor + (0 if value.pixels is None else value.pixels.nbytes))


class _StackRun:
    """The stages of one picture, and what they share."""

    def __init__(
        self,
        item: Item,
        stack: images.Stack,
        pages: PageRange,
        segmenter: Segmenter,
        outputs: OutputTree,
    ) -> None:
        self.item, self.pages, self.segmenter, self.outputs = item, pages, segmenter, outputs
        self.total = len(pages.of(stack.count))
        self.stack = stack if self.total == stack.count else images.Stack(self.total)
        self.temporary: dict[str, str] = {}
        self.notes: list[str] = []

    def carry_out(self, on_page: Callable[[int, int], None], stop: Stop, result: StackResult) -> None:
        """Send the pages through their pipeline, and write what comes out."""
        segmenter, backend = self.segmenter, self.segmenter.backend
        workers, batch = segmenter.workers, backend.batch_size
        stages: list[Stage[Any, Any]] = [
            Stage("decode", self.place, workers),
            Stage("infer", self.infer, backend.streams, batch, enter=backend.thread),
            Stage("render", self.draw, workers),
        ]
        with (
            ExitStack() as writers,
            single_threaded_cv2(),
            Pipeline[_Page, _Page](
                self.read(),
                stages,
                in_flight=2 * (batch * backend.streams + 2 * workers),
                weigh=lambda page: page.weight,
                budget=PIXEL_BUDGET,
                describe=lambda page: f"{self.item.path}, page {page.number}",
            ) as done,
        ):
            stop.watch(done.stop)
            files: dict[str, images.StackWriter] = {}
            try:
                for page in done:
                    for kind, pixels in page.value.items():
                        self.write(files, writers, kind, pixels, page.dpi)
                    result.pages += 1
                    on_page(result.pages, self.total)
            finally:
                result.stages = done.stats
        if stop.reason and result.pages < self.total:
            raise _Stopped

    def write(
        self,
        files: dict[str, images.StackWriter],
        writers: ExitStack,
        kind: str,
        pixels: NDArray[Any],
        dpi: tuple[float, float] | None,
    ) -> None:
        """Write a page of a kind of output, the first one into a new file."""
        try:
            if kind not in files:
                size = pixels.nbytes * self.total
                files[kind] = writers.enter_context(
                    images.StackWriter(self.temporary[kind], self.stack, size)
                )
            files[kind].write(pixels, dpi)
        except OSError as error:
            raise translate(error, self.temporary[kind], pixels.nbytes) from error

    # The source, in a thread of its own.

    def read(self) -> Iterator[_Page]:
        """The pages, in order."""
        with closing(
            images.read_pages(
                self.item.path,
                self.pages.of,
                max_pixels=self.segmenter.max_pixels,
                channels=self.segmenter.channels,
            )
        ) as pages:
            for number, picture in enumerate(pages, self.pages.first):
                self.notes += [note for note in picture.notes if note not in self.notes]
                yield _Page(number, picture, picture.metadata.dpi)

    # The stages.

    def place(self, page: _Page) -> _Page:
        frame = self.segmenter.frame_of(self.item, page.value, keep_pixels=self.outputs.need_pixels)
        return _Page(page.number, frame, page.dpi)

    def infer(self, pages: Sequence[_Page]) -> list[_Page]:
        predictions = self.segmenter.infer([page.value for page in pages])
        return [_Page(page.number, each, page.dpi) for page, each in zip(pages, predictions, strict=True)]

    def draw(self, page: _Page) -> _Page:
        result = self.segmenter.result(page.value)
        return _Page(page.number, {kind: result.draw(kind) for kind in self.outputs.kinds}, page.dpi)
