"""Segment pictures with a model: the Python interface, and the stages that `run` and `stream` share.

import unet_batch

with unet_batch.load() as segmenter:
    mask = segmenter("car.jpg")
    for result in segmenter.stream(paths):
        print(result.path, result.error or result.mask.shape)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
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
    VideoError,
)
from unet_batch.files import naming
from unet_batch.files.outputs import PLAIN, Style
from unet_batch.inference.backends.base import Backend
from unet_batch.inference.backends.ensemble import Ensemble, check_members
from unet_batch.inference.backends.select import Request, Step, select
from unet_batch.inference.result import Result
from unet_batch.inference.views import View, ViewOptions, choose_channels
from unet_batch.media import domain, images
from unet_batch.media.cleanup import UNTOUCHED, Cleanup
from unet_batch.media.measure import Measuring
from unet_batch.media.threads import single_threaded_cv2
from unet_batch.pipeline import Failed, Pipeline, Stage, cpu_count
from unet_batch.types import Frame, HasItem, Item, ModelSpec, Prediction

if TYPE_CHECKING:
    from typing_extensions import Self

    from unet_batch.files.outputs import OutputTree
    from unet_batch.inference.workers import PictureWorkers
    from unet_batch.media.images.common import Picture
    from unet_batch.media.images.memory import InMemory
    from unet_batch.media.isolation import Decoders
    from unet_batch.model.checkpoint import ModelFile
    from unet_batch.processes import Workers
    from unet_batch.types import Channels, Pixels, Size

    AnyPicture = str | os.PathLike[str] | InMemory

# Pictures in flight may hold this many bytes of pixels: two dozen photos of 20 megapixels.
PIXEL_BUDGET = 512 * 2**20
# So many inference failures in a row, with no success between, are the device's fault, not the pictures'.
BROKEN_DEVICE = 8

Done = TypeVar("Done")


@dataclass(frozen=True, eq=False)
class _InMemory:
    """A picture that is no file: its name for messages, and what there is of it."""

    item: Item
    picture: InMemory


class Segmenter:
    """A backend with its model, open until `close`; see `unet_batch.load` and `open_segmenter`.

    Args:
        backend: opened here unless it is open. `close` closes it, and so does a refusal to begin.
        model: the file the backend runs, or those of an ensemble, for reports; None where it did not come
            from one.
        passed_over: backends that were tried before this one, for reports.
        threshold: probability from which a pixel counts; None takes the model's own.
        workers: threads for each of decoding, rendering and writing; None takes one for each core.
        max_pixels: largest height x width of a picture that is decoded.
        isolate: decode in as many processes, so that a picture that crashes its decoder fails alone; a run
            draws and writes its outputs there, too. See `processes` and `workers.py`.
        view: how the network sees pictures; None shows it the whole picture at its own aspect ratio.
        channels: bands of each picture that the network takes, from 1; None takes the model's own.
        cleanup: what masks are cleaned of.
        measuring: how masks are measured, for tables.

    Raises:
        UsageError: the threshold lies outside (0, 1] or there is no probability, workers or max_pixels is
            below 1, the model takes another number of channels or has other classes, or its input does not
            allow the view.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        model: ModelFile | Sequence[ModelFile] | None = None,
        passed_over: Sequence[Step] = (),
        threshold: float | None = None,
        workers: int | None = None,
        max_pixels: int = images.MAX_PIXELS,
        isolate: bool = False,
        view: ViewOptions | None = None,
        channels: Channels | None = None,
        cleanup: Cleanup = UNTOUCHED,
        measuring: Measuring = Measuring(),  # noqa: B008 - it has no state
    ) -> None:
        self.backend, self.measuring = backend, measuring
        self.models: tuple[ModelFile, ...] = ()
        if model is not None:
            self.models = tuple(model) if isinstance(model, Sequence) else (model,)
        self.passed_over = tuple(passed_over)
        self.threshold = backend.spec.threshold if threshold is None else threshold
        self.workers = cpu_count() if workers is None else workers
        self.max_pixels = max_pixels
        self._workers: Workers | None = None
        self._decoders: Decoders | None = None
        try:
            if not 0 < self.threshold <= 1:
                raise UsageError(f"threshold {self.threshold}: above 0 and up to 1 expected")
            if threshold is not None and backend.spec.output == "class_ids":
                raise UsageError(
                    f"threshold {threshold:g}: {backend.spec.name} gives ids of classes, no probability",
                    hint="leave the threshold out",
                )
            if self.workers < 1:
                raise UsageError(f"workers {workers}: 1 or more expected")
            if max_pixels < 1:
                raise UsageError(f"max_pixels {max_pixels}: 1 or more expected")
            self.channels = choose_channels(backend.spec, channels)
            self.cleanup = cleanup
            cleanup.check(backend.spec.classes, backend.spec.name)
            self.view = View(backend, view)
            if not backend.is_open:
                backend.open()
        except BaseException:
            self.close()
            raise
        if isolate:
            from unet_batch.inference import workers as picture_workers
            from unet_batch.media import isolation
            from unet_batch.processes import Workers

            self._workers = Workers(self.workers, (*picture_workers.FUNCTIONS, isolation.READER))
            self._decoders = isolation.Decoders(self._workers)

    @property
    def spec(self) -> ModelSpec:
        """The model's own description."""
        return self.backend.spec

    @property
    def terms(self) -> str:
        """Terms under which the model may be used; "" where nobody said."""
        return self.spec.terms

    def describe(self) -> dict[str, Any]:
        """The backend, why it was chosen and how it is used, for reports: values that JSON can hold."""
        return {
            **self.backend.describe(),
            "passed_over": [asdict(step) for step in self.passed_over],
            "workers": self.workers,
            "threshold": self.threshold,
            **self.view.facts(),
            **({"channels": list(self.channels)} if self.channels else {}),
            **({"cleanup": self.cleanup.facts()} if self.cleanup.facts() else {}),
        }

    def describe_model(self) -> dict[str, Any]:
        """What identifies the model, or those of an ensemble, for reports: values that JSON can hold."""
        models = [model.as_dict() for model in self.models]
        if len(models) < 2:
            return models[0] if models else {}
        spec = self.spec
        classes, colours = list(spec.classes.names), [list(colour) for colour in spec.classes.colours]
        names = {"name": spec.name, "classes": classes, "colours": colours}
        return {**names, "terms": spec.terms, "members": models}

    def close(self) -> None:
        """Close the backend, and end the worker processes if there are any."""
        try:
            if self._workers is not None:
                self._workers.close()
        finally:
            self.backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __call__(self, picture: AnyPicture) -> Pixels:
        """Segment one picture.

        Args:
            picture: a path; the bytes of a file; a `PIL.Image.Image`; or an array: RGB (height, width, 3),
                RGBA (height, width, 4) or grey (height, width), of uint8 or of floats in 0..1; of a model of
                other channels (height, width, bands). Alpha is composited over white. What is in memory is
                decoded in this process.

        Returns:
            uint8 (height, width): 0/255 for one class, class ids for several.

        Raises:
            ImageError: the picture cannot be decoded, or has values out of range.
            BackendError: inference failed.
            RunError: decoding is isolated, and no decoder can be started.
        """
        return self.mask(self._predict(picture, keep_pixels=False))

    def predict(self, picture: AnyPicture) -> Result:
        """Segment one picture, as calling does, for more than its mask: see `Result`.

        Raises:
            ImageError: the picture cannot be decoded, or has values out of range.
            BackendError: inference failed.
            RunError: decoding is isolated, and no decoder can be started.
        """
        return self.result(self._predict(picture, keep_pixels=True))

    def stream(self, pictures: Iterable[AnyPicture], *, keep_pixels: bool = False) -> Iterator[Result]:
        """Segment many pictures at once: results come in order, memory stays bounded.

        A picture that fails is a `Result` with its `error`; the stream goes on.

        Args:
            pictures: each as for `predict`; read a few ahead of the results.
            keep_pixels: keep the pictures' own pixels with the results, for `overlay` and `cutout`.

        Raises:
            BackendError: the backend fails for one picture after the other.
            RunError: decoding is isolated, and no decoder can be started.
        """

        def finish(prediction: Prediction) -> Result:
            result = self.result(prediction)
            _ = result.mask  # made here, in a thread of its own
            return result

        with self.pipeline(map(source_of, pictures), [("mask", finish)], keep_pixels=keep_pixels) as outcomes:
            for outcome in outcomes:
                if isinstance(outcome, Failed):
                    yield Result(outcome.value.item.path, self.spec, self.threshold, None, as_error(outcome))
                else:
                    yield outcome

    def result(self, prediction: Prediction, style: Style = PLAIN) -> Result:
        """What can be drawn from a prediction, and saved, in a style."""
        return Result(
            prediction.item.path,
            self.spec,
            self.threshold,
            prediction,
            refine=self.view.options.refine,
            cleanup=self.cleanup,
            style=style,
            measuring=self.measuring,
        )

    def _predict(self, picture: AnyPicture, *, keep_pixels: bool) -> Prediction:
        return self.infer([self.decode(source_of(picture), keep_pixels=keep_pixels)])[0]

    # The stages.

    def decode(self, source: HasItem, *, keep_pixels: bool) -> Frame:
        """Read a picture; at reduced scale where nobody needs its pixels at full size."""
        keep_pixels = keep_pixels or self.view.options.refine
        at_least = self._at_least(keep_pixels)
        path = source.item.path
        how: Any = {
            "at_least": at_least,
            "max_pixels": self.max_pixels,
            "value_range": self.view.options.range,
            "channels": self.channels,
        }
        if isinstance(source, _InMemory):
            picture = images.from_memory(source.picture, path, **how)
        else:
            read = images.read if self._decoders is None else self._decoders.read
            picture = read(path, **how)
        return self.frame_of(source.item, picture, keep_pixels=keep_pixels)

    def frame_of(self, item: Item, picture: Picture, *, keep_pixels: bool) -> Frame:
        """Place a picture that is decoded into what the network is shown."""
        frame = self.frame(item, picture.pixels, picture.size, keep_pixels=keep_pixels)
        return replace(
            frame,
            missing=picture.missing,
            alpha=picture.alpha if frame.pixels is not None else None,
            metadata=picture.metadata,
            notes=picture.notes + domain.notes_on(frame.unlike),
        )

    def _at_least(self, keep_pixels: bool) -> Size | None:
        """To which size pictures may be reduced when they are decoded."""
        return None if keep_pixels or self.view.options.refine else self.view.at_least()

    def frame(self, item: Item, pixels: Pixels, size: Size, *, keep_pixels: bool = False) -> Frame:
        """Place a picture of `size`, or a smaller version of it, into what the network is shown."""
        tensors = self.view.placer.show(pixels, size, self.view.buffers(size))
        kept, placement = pixels if keep_pixels or self.view.options.refine else None, self.view.place(size)
        unlike = domain.unlike(self.view.domains, tensors, placement)
        return Frame(item, placement, tensors, kept, unlike=unlike)

    def infer(self, frames: Sequence[Frame]) -> list[Prediction]:
        """Run the network on a batch of frames, and let go of what it saw."""
        maps = self.view.infer(
            [frame.tensors for frame in frames], [frame.placement.source for frame in frames]
        )
        return [Prediction(replace(frame, tensors=()), map) for frame, map in zip(frames, maps, strict=True)]

    def mask(self, prediction: Prediction) -> Pixels:
        """The mask at the picture's own size: uint8 (height, width), 0/255 or class ids."""
        mask = self.result(prediction).mask
        assert mask is not None
        return mask

    def check_clip(self, name: str) -> None:
        """Raise VideoError if the network takes bands that no clip has."""
        if self.channels is not None:
            wanted = ",".join(map(str, self.channels))
            raise VideoError(
                f"{name}: a video is red, green and blue, the network takes channels {wanted}",
                hint="videos are for models of three channels, or of one, without --channels",
            )

    def picture_workers(self, outputs: OutputTree) -> PictureWorkers | None:
        """What prepares and finishes pictures in worker processes; None where they are not isolated."""
        if self._workers is None:
            return None
        from unet_batch.inference.workers import PictureWorkers

        return PictureWorkers(
            self._workers,
            self.view,
            outputs,
            threshold=self.threshold,
            at_least=self._at_least(outputs.need_pixels),
            max_pixels=self.max_pixels,
            channels=self.channels,
            cleanup=self.cleanup,
            measuring=self.measuring,
        )

    @contextmanager
    def pipeline(
        self,
        items: Iterable[HasItem],
        finish: Sequence[tuple[str, Callable[[Any], Done]]],
        *,
        keep_pixels: bool = False,
        workers: PictureWorkers | None = None,
        threads: Mapping[str, int] | None = None,
    ) -> Iterator[Pipeline[HasItem, Done | Failed[HasItem]]]:
        """Decode and infer, then the stages of `finish`, each a name and a function; in order.

        Given `workers`, these decode, and `finish` gets what they have prepared, seen by the network. Stages
        of `finish` that `threads` names have so many.

        What concerns one picture is delivered as a `Failed`, whose value has the `item`. All else ends the
        iteration: the next write, or the start of the next decoder, would fail as well.
        """
        batch, streams = self.backend.batch_size, self.backend.streams
        decode: Callable[[Any], Any] = partial(self.decode, keep_pixels=keep_pixels)
        infer: Callable[[Any], Any] = self.infer
        if workers is not None:
            decode, infer = workers.prepare, workers.infer
        threads = {name: (threads or {}).get(name, self.workers) for name, _ in finish}
        stages: list[Stage[Any, Any]] = [
            Stage("decode", decode, self.workers, isolate=concerns_one_item),
            Stage("infer", infer, streams, batch, isolate=_inference_failed, enter=self.backend.thread),
            *(Stage(name, work, threads[name], isolate=concerns_one_item) for name, work in finish),
        ]
        with (
            single_threaded_cv2(),
            Pipeline[HasItem, "Done | Failed[HasItem]"](
                items,
                stages,
                # Enough for every worker to have one in hand and one waiting.
                in_flight=2 * (batch * streams + self.workers + sum(threads.values())),
                weigh=_weigh,
                budget=PIXEL_BUDGET,
                describe=lambda value: value.item.path,
            ) as results,
        ):
            yield results


def open_segmenter(
    *requests: Request,
    threshold: float | None = None,
    workers: int | None = None,
    max_pixels: int = images.MAX_PIXELS,
    isolate: bool = False,
    view: ViewOptions | None = None,
    channels: Channels | None = None,
    cleanup: Cleanup = UNTOUCHED,
    measuring: Measuring = Measuring(),  # noqa: B008 - it has no state
) -> Segmenter:
    """Open the best backend for a model and segment with it; see `select` and `Segmenter` for the arguments.

    Args:
        requests: one; of several models the maps are averaged.

    Raises:
        BackendUnavailable: what was asked for cannot run; the hint is the command that would fix it.
        UsageError: an argument is out of range, the device contradicts the backend, or the models do not
            agree.
    """
    models = [request.model for request in requests]
    check_members({model.path: model.spec for model in models})  # before the seconds that loading takes
    if len({model.sha256 for model in models}) < len(models):
        raise UsageError(f"{len(models)} models, of which two are the same", hint="give each once")
    with ExitStack() as opened:
        chosen = [opened.enter_context(select(request)) for request in requests]
        backends = [selection.backend for selection in chosen]
        segmenter = Segmenter(
            backends[0] if len(backends) == 1 else Ensemble(backends),
            model=models,
            passed_over=tuple(dict.fromkeys(step for selection in chosen for step in selection.passed_over)),
            threshold=threshold,
            workers=workers,
            max_pixels=max_pixels,
            isolate=isolate,
            view=view,
            channels=channels,
            cleanup=cleanup,
            measuring=measuring,
        )
        opened.pop_all()
    return segmenter


def source_of(picture: AnyPicture) -> HasItem:
    """A picture as the pipeline takes it; a file's own name is also that of its outputs."""
    if isinstance(picture, (str, os.PathLike)):
        path = os.fspath(picture)
        name = os.path.basename(path)
        return Item(path, naming.assign_keys([name])[name] if name else "")
    if isinstance(picture, np.ndarray):
        label = "array"
    else:
        label = "bytes" if isinstance(picture, (bytes, bytearray, memoryview)) else "image"
    return _InMemory(Item(label), picture)


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
    return _inference_failed(error) or not isinstance(error, UnetBatchError)


def _inference_failed(error: Exception) -> bool:
    return isinstance(error, BackendError | ItemError)


def _weigh(value: HasItem | Result) -> int:
    """Bytes of pixels that a value holds."""
    if isinstance(value, _InMemory):
        return int(getattr(value.picture, "nbytes", 0))
    more = 0
    if isinstance(value, Result):  # waits for its turn, and keeps what it was made from
        mask, prediction = value.mask, value.prediction
        if mask is None or prediction is None:
            return 0
        more, value = mask.nbytes, prediction
    if isinstance(value, Prediction):
        more, value = more + value.map.nbytes, value.frame
    if isinstance(value, Frame):
        held = (*value.tensors, value.pixels, value.missing, value.alpha)
        return more + sum(array.nbytes for array in held if array is not None)
    weight: int = getattr(value, "nbytes", 0)  # of what workers have prepared
    return weight
