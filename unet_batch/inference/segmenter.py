"""A model ready to segment: the Python interface, and the stages that `run` and `stream` share.

import unet_batch

with unet_batch.load() as segmenter:
    mask = segmenter("car.jpg")
    for result in segmenter.stream(paths):
        print(result.path, result.error or result.mask.shape)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from unet_batch.errors import (
    BackendError,
    EncodeError,
    ImageError,
    ItemError,
    UnetBatchError,
    UsageError,
)
from unet_batch.inference import postprocess
from unet_batch.inference.backends.base import Backend
from unet_batch.inference.backends.select import Request, Step, select
from unet_batch.media import geometry, images
from unet_batch.media.isolation import Decoders
from unet_batch.media.threads import single_threaded_cv2
from unet_batch.pipeline import Failed, Pipeline, Stage, cpu_count
from unet_batch.types import Frame, HasItem, Item, ModelSpec, Prediction

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Self

    from unet_batch.model.checkpoint import CheckpointFile
    from unet_batch.types import Pixels, Size

# Pictures in flight may hold this many bytes of pixels: two dozen photos of 20 megapixels.
PIXEL_BUDGET = 512 * 2**20
# So many inference failures in a row, with no success between, are the device's fault, not the pictures'.
BROKEN_DEVICE = 8
# A photo is decoded at reduced scale only while it stays this many times as large as the network sees it.
# Dice against the masks of a full decode, 24 photos: 0.9996 at 4, 0.9993 at 2, 0.998 at 1.6, 0.997 at 1.
# Noise of one level gives 0.9995.
OVERSAMPLING = 2

Done = TypeVar("Done")


@dataclass(frozen=True, eq=False)
class Result:
    """What became of one picture of `Segmenter.stream`.

    Attributes:
        path: the picture, as it was given.
        prediction: None if the picture failed.
        mask: uint8 (height, width) as a person sees the picture: 0/255 for one class, class ids for several;
            None if it failed.
        error: why it failed, else None.
    """

    path: str
    prediction: Prediction | None
    mask: Pixels | None
    error: UnetBatchError | None

    @property
    def probability(self) -> Pixels:
        """uint8 (height, width), round(255 p), of a model of one class.

        Raises:
            UsageError: the picture failed, or the model has several classes.
        """
        if self.prediction is None:
            raise UsageError(f"{self.path}: failed, there is no probability: {self.error}")
        return postprocess.probability(self.prediction.map, self.prediction.frame.placement)


class Segmenter:
    """A backend with its model, open until `close`; see `unet_batch.load` and `open_segmenter`.

    Args:
        backend: opened here unless it is open. `close` closes it, and so does a refusal to begin.
        model: the file the backend runs, for reports; None where it did not come from one.
        passed_over: backends that were tried before this one, for reports.
        threshold: probability from which a pixel counts; None takes the model's own.
        workers: threads for each of decoding, rendering and writing; None takes one for each core.
        max_pixels: largest height x width of a picture that is decoded.
        isolate: decode in as many processes, so that a picture that crashes its decoder fails alone; see
            `isolation.py`.

    Raises:
        UsageError: the threshold lies outside (0, 1], workers or max_pixels is below 1, or the model does not
            take RGB.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        model: CheckpointFile | None = None,
        passed_over: Sequence[Step] = (),
        threshold: float | None = None,
        workers: int | None = None,
        max_pixels: int = images.MAX_PIXELS,
        isolate: bool = False,
    ) -> None:
        self.backend = backend
        self.model = model
        self.passed_over = tuple(passed_over)
        self.threshold = backend.spec.threshold if threshold is None else threshold
        self.workers = cpu_count() if workers is None else workers
        self.max_pixels = max_pixels
        self._decoders: Decoders | None = None
        try:
            if not 0 < self.threshold <= 1:
                raise UsageError(f"threshold {self.threshold}: above 0 and up to 1 expected")
            if self.workers < 1:
                raise UsageError(f"workers {workers}: 1 or more expected")
            if max_pixels < 1:
                raise UsageError(f"max_pixels {max_pixels}: 1 or more expected")
            if (channels := backend.spec.in_channels) != 3:
                raise UsageError(
                    f"{backend.spec.name} takes {channels} channels, pictures are read as RGB (3)"
                )
            if not backend.is_open:
                backend.open()
        except BaseException:
            self.close()
            raise
        if isolate:
            self._decoders = Decoders(self.workers)

    @property
    def spec(self) -> ModelSpec:
        """The model's own description."""
        return self.backend.spec

    def describe(self) -> dict[str, Any]:
        """The backend, why it was chosen and how it is used, for reports: values that JSON can hold."""
        return {
            **self.backend.describe(),
            "passed_over": [asdict(step) for step in self.passed_over],
            "workers": self.workers,
            "threshold": self.threshold,
        }

    def close(self) -> None:
        """Close the backend, and end the decoders if they have processes of their own."""
        try:
            if self._decoders is not None:
                self._decoders.close()
        finally:
            self.backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __call__(self, picture: str | os.PathLike[str] | NDArray[Any]) -> Pixels:
        """Segment one picture.

        Args:
            picture: a path, or an RGB uint8 array (height, width, 3), or a grey one (height, width).

        Returns:
            uint8 (height, width): 0/255 for one class, class ids for several.

        Raises:
            ImageError: the file cannot be decoded, or the array is not a picture.
            BackendError: inference failed.
            UsageError: decoding is isolated, and no decoder can be started.
        """
        if isinstance(picture, np.ndarray):
            pixels = _as_rgb(picture)
            frame = self.frame(Item("array"), pixels, (pixels.shape[0], pixels.shape[1]))
        else:
            frame = self.decode(Item(os.fspath(picture)), keep_pixels=False)
        return self.mask(self.infer([frame])[0])

    def stream(self, paths: Iterable[str | os.PathLike[str]]) -> Iterator[Result]:
        """Segment many pictures: decoding, inference and masks overlap, results come in order, memory stays
        bounded.

        A picture that fails is a `Result` with its `error`; the stream goes on.

        Raises:
            BackendError: the backend fails for one picture after the other.
            UsageError: decoding is isolated, and no decoder can be started.
        """

        def finish(prediction: Prediction) -> Result:
            return Result(prediction.frame.item.path, prediction, self.mask(prediction), None)

        items = (Item(os.fspath(path)) for path in paths)
        with self.pipeline(items, [("mask", finish)], keep_pixels=False) as outcomes:
            for outcome in outcomes:
                yield (
                    Result(item_of(outcome).path, None, None, as_error(outcome))
                    if isinstance(outcome, Failed)
                    else outcome
                )

    # The stages.

    def decode(self, item: Item, *, keep_pixels: bool) -> Frame:
        """Read a picture; at reduced scale where nobody needs its pixels at full size."""
        height, width = self.backend.input_size
        at_least = None if keep_pixels else (OVERSAMPLING * height, OVERSAMPLING * width)
        read = images.read if self._decoders is None else self._decoders.read
        picture = read(item.path, at_least=at_least, max_pixels=self.max_pixels)
        return self.frame(item, picture.pixels, picture.size, keep_pixels=keep_pixels)

    def frame(self, item: Item, pixels: Pixels, size: Size, *, keep_pixels: bool = False) -> Frame:
        """Place a decoded picture, or a smaller version of it, into the network's input; `size` is the whole
        picture's.
        """
        placement = geometry.place(size, self.backend.input_size)
        tensor = geometry.to_network(pixels, placement, out=self.backend.buffer())
        return Frame(item, placement, tensor, pixels if keep_pixels else None)

    def infer(self, frames: Sequence[Frame]) -> list[Prediction]:
        """Run the network on a batch of frames."""
        maps = self.backend.infer([frame.tensor for frame in frames])
        return [Prediction(frame, map) for frame, map in zip(frames, maps, strict=True)]

    def mask(self, prediction: Prediction) -> Pixels:
        """The mask at the picture's own size: uint8 (height, width), 0/255 or class ids."""
        placement = prediction.frame.placement
        if self.spec.output == "class_ids":
            return postprocess.class_ids(prediction.map, placement, len(self.spec.classes.names))
        return postprocess.mask_from_map(prediction.map, placement, self.threshold)

    @contextmanager
    def pipeline(
        self,
        items: Iterable[Item],
        finish: Sequence[tuple[str, Callable[[Any], Done]]],
        *,
        keep_pixels: bool,
    ) -> Iterator[Pipeline[HasItem, Done | Failed[HasItem]]]:
        """Decode and infer, then the stages of `finish`, each a name and a function; in the order of the items.

        What concerns one picture is delivered as a `Failed`, whose value has the `item`. All else ends the
        iteration: the next write, or the start of the next decoder, would fail as well.
        """
        batch, streams = self.backend.batch_size, self.backend.streams
        decode = partial(self.decode, keep_pixels=keep_pixels)
        stages: list[Stage[Any, Any]] = [
            Stage("decode", decode, self.workers, isolate=concerns_one_item),
            Stage("infer", self.infer, streams, batch, isolate=_inference_failed, enter=self.backend.thread),
            *(Stage(name, work, self.workers, isolate=concerns_one_item) for name, work in finish),
        ]
        with (
            single_threaded_cv2(),
            Pipeline[HasItem, "Done | Failed[HasItem]"](
                items,
                stages,
                # Enough for every worker to have one in hand and one waiting.
                in_flight=2 * (batch * streams + (1 + len(finish)) * self.workers),
                weigh=_weigh,
                budget=PIXEL_BUDGET,
                describe=lambda value: value.item.path,
            ) as results,
        ):
            yield results


def open_segmenter(
    request: Request,
    *,
    threshold: float | None = None,
    workers: int | None = None,
    max_pixels: int = images.MAX_PIXELS,
    isolate: bool = False,
) -> Segmenter:
    """Open the best backend for a model and segment with it; see `select` and `Segmenter` for the arguments.

    Raises:
        BackendUnavailable: what was asked for cannot run; the hint is the command that would fix it.
        UsageError: an argument is out of range, or the device contradicts the backend.
    """
    chosen = select(request)
    return Segmenter(
        chosen.backend,
        model=request.model,
        passed_over=chosen.passed_over,
        threshold=threshold,
        workers=workers,
        max_pixels=max_pixels,
        isolate=isolate,
    )


def item_of(outcome: HasItem | Failed[HasItem]) -> Item:
    """The item that a result, or a failure, belongs to."""
    return (outcome.value if isinstance(outcome, Failed) else outcome).item


def as_error(failed: Failed[HasItem]) -> UnetBatchError:
    """The failure in our own words; one that nobody foresaw keeps its type's name in the message."""
    if isinstance(failed.error, UnetBatchError):
        return failed.error
    kind = EncodeError if failed.stage != "decode" else ImageError
    error = kind(
        f"{failed.value.item.path}: {type(failed.error).__name__}: {failed.error}",
        hint="unexpected; please report it with the file",
    )
    error.__cause__ = failed.error
    return error


def concerns_one_item(error: Exception) -> bool:
    """Whether the next picture may fare better: its own file's fault, or a surprise; not a full disk, say."""
    return isinstance(error, ItemError) or not isinstance(error, UnetBatchError)


def _inference_failed(error: Exception) -> bool:
    return isinstance(error, BackendError | ItemError)


def _weigh(value: HasItem) -> int:
    """Bytes of pixels that a value holds."""
    if isinstance(value, Prediction):
        value = value.frame
    if isinstance(value, Frame):
        return value.tensor.nbytes + (value.pixels.nbytes if value.pixels is not None else 0)
    return 0


def _as_rgb(array: NDArray[Any]) -> Pixels:
    if (
        array.dtype != np.uint8
        or array.size == 0
        or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3))
    ):
        raise ImageError(
            f"array of {array.dtype} {array.shape}: uint8 (height, width, 3) in RGB order or (height, "
            f"width) expected",
            hint="convert it first, e.g. (255 * x).astype('uint8')",
        )
    rgb = np.repeat(array[:, :, None], 3, axis=2) if array.ndim == 2 else array
    return np.ascontiguousarray(rgb)
