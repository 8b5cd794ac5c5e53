"""One picture of several pages: each page goes through the network, and its outputs into stacks of pages.

    decode ──▶ place ──▶ infer ──▶ draw ──▶ write, in order
    the source's thread                     this thread

Outputs grow, and appear all at once: see `whole`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

from unet_batch.errors import ImageError
from unet_batch.files.atomic import replacing, translate
from unet_batch.files.outputs import OutputTree
from unet_batch.files.tables import TABLES, TableWriter
from unet_batch.inference.segmenter import PIXEL_BUDGET, Segmenter
from unet_batch.media import images
from unet_batch.pipeline import Pipeline, Stage
from unet_batch.run.observe import Stop
from unet_batch.run.options import PageRange
from unet_batch.run.whole import WholeResult, segment_whole
from unet_batch.types import Frame, Item, Prediction

SUFFIX = ".tif"

_Writer = images.StackWriter | images.SegmentationWriter | TableWriter


def file_of(outputs: OutputTree, kind: str, key: str) -> str:
    """Where a stack goes, relative to the output folder and `/`-separated."""
    if kind == "dicomseg" or kind in TABLES:  # has frames of its own, or rows
        return outputs.file(kind, key)
    return outputs.file(kind, key).removesuffix(outputs.style.suffix(kind)) + SUFFIX


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
) -> WholeResult:
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
    return segment_whole(_StackRun(item, stack, pages, segmenter, outputs), on_page, stop)


@dataclass(frozen=True, eq=False)
class _Page:
    """A page, as it was decoded, placed, seen by the network or drawn.

    Attributes:
        number: counted from 1.
        value: a picture, a frame, a prediction, or the pixels, or table, of each kind of output.
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
            return sum(memoryview(pixels).nbytes for pixels in value.values())
        more = 0
        if isinstance(value, Prediction):
            more, value = value.map.nbytes, value.frame
        tensors = value.tensors if isinstance(value, Frame) else ()
        pixels = () if value.pixels is None else (value.pixels,)
        return int(more + sum(array.nbytes for array in (*tensors, *pixels)))


class _StackRun:
    """The stages of one picture, and what they share."""

    source = "source"

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
        self.files: dict[str, _Writer] = {}
        self.written = 0

    def open_outputs(self, stack: ExitStack) -> None:
        """Choose a file for each kind, which `stack` will rename, or remove."""
        for kind in self.outputs.kinds:
            path = os.path.join(self.outputs.folder, *file_of(self.outputs, kind, self.item.key).split("/"))
            self.temporary[kind] = stack.enter_context(replacing(path))
        self.writers = stack.enter_context(ExitStack())

    def pipeline(self) -> Pipeline[_Page, _Page]:
        """From pages to pages of outputs."""
        workers, backend = self.segmenter.workers, self.segmenter.backend
        batch = backend.batch_size
        stages: list[Stage[Any, Any]] = [
            Stage("decode", self.place, workers),
            Stage("infer", self.infer, backend.streams, batch, enter=backend.thread),
            Stage("render", self.draw, workers),
        ]
        return Pipeline(
            self.read(),
            stages,
            in_flight=2 * (batch * backend.streams + 2 * workers),
            weigh=lambda page: page.weight,
            budget=PIXEL_BUDGET,
            describe=lambda page: f"{self.item.path}, page {page.number}",
        )

    def take(self, page: _Page) -> int:
        """Write a page of each kind, the first one into a new file; returns how many are written."""
        for kind, pixels in page.value.items():
            size = memoryview(pixels).nbytes
            try:
                if kind not in self.files:
                    self.files[kind] = writer = self.open_writer(kind, size)
                    self.writers.enter_context(writer)
                self.files[kind].write(pixels, page.dpi)
            except OSError as error:
                raise translate(error, self.temporary[kind], size) from error
        self.written += 1
        return self.written

    def finish(self) -> dict[str, int]:
        """Close the files; returns the bytes of each."""
        self.writers.close()
        return {kind: os.path.getsize(path) for kind, path in self.temporary.items()}

    def open_writer(self, kind: str, page: int) -> _Writer:
        """Open the file of a kind of output, given the bytes of a page."""
        path, spec = self.temporary[kind], self.segmenter.spec
        if kind in TABLES:
            return TableWriter(path, kind)
        if kind == "dicomseg":
            return images.SegmentationWriter(
                path, self.item.path, self.pages.first - 1, spec.classes, spec.name
            )
        return images.StackWriter(path, self.stack, page * self.total)

    # The source, in a thread of its own.

    def read(self) -> Iterator[_Page]:
        """The pages, in order."""
        with closing(
            images.read_pages(
                self.item.path,
                self.pages.of,
                max_pixels=self.segmenter.max_pixels,
                value_range=self.segmenter.view.options.range,
                channels=self.segmenter.channels,
            )
        ) as pages:
            for number, picture in enumerate(pages, self.pages.first):
                yield _Page(number, picture, picture.metadata.dpi)

    # The stages.

    def place(self, page: _Page) -> _Page:
        frame = self.segmenter.frame_of(self.item, page.value, keep_pixels=self.outputs.need_pixels)
        self.notes += [note for note in frame.notes if note not in self.notes]
        return _Page(page.number, frame, page.dpi)

    def infer(self, pages: Sequence[_Page]) -> list[_Page]:
        predictions = self.segmenter.infer([page.value for page in pages])
        return [_Page(page.number, each, page.dpi) for page, each in zip(pages, predictions, strict=True)]

    def draw(self, page: _Page) -> _Page:
        result = self.segmenter.result(page.value, self.outputs.style)
        drawn = {
            kind: result.rows(kind, page.number) if kind in TABLES else result.draw(kind)
            for kind in self.outputs.kinds
        }
        return _Page(page.number, drawn, page.dpi)
