"""Have pictures decoded, drawn and written in processes: only what the network needs comes over.

    prepared = workers.prepare(item)       # decoded there; the network's input is here
    prepared = workers.infer([prepared])   # here
    written = workers.finish(prepared)     # its files stand under their names

A picture's own pixels, and whatever else its outputs need, stay in the worker that decoded it, 20 MB of a
photo; its network-sized version comes here (115 kB for 160x240), straight into the backend's buffer, and the
map goes back (38 kB). Where the worker that kept a picture has died, another one decodes it again.
"""

from __future__ import annotations

import json
import math
import struct
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from unet_batch.errors import EncodeError, ImageError, UnetBatchError
from unet_batch.files import remote
from unet_batch.files.atomic import write_atomic
from unet_batch.files.outputs import OutputTree, Style
from unet_batch.inference.result import Result
from unet_batch.inference.views import Placer
from unet_batch.media import domain, isolation
from unet_batch.media.cleanup import UNTOUCHED, Cleanup
from unet_batch.media.measure import Measuring
from unet_batch.processes import TIMED_OUT, Died, Kept, Workers
from unet_batch.types import ClassTable, Domain, Frame, Item, ModelSpec, Prediction

if TYPE_CHECKING:
    from unet_batch.inference.views import View
    from unet_batch.types import Channels, Pixels, Size

_PREPARE, _FINISH = f"{__name__}:prepare", f"{__name__}:finish"
FUNCTIONS = (isolation.DECODE, _PREPARE, _FINISH)
"""What workers must be able to do."""
# Height and width of the picture, bytes that are kept of it, how far it is from what the model has seen
_PREPARED = struct.Struct("<IIQd")
_FINISHED = struct.Struct(
    "<dd"
)  # seconds of drawing, of writing; the sizes of the files and the notes follow


class Prepared:
    """A picture on its way: decoded by a worker, then seen by the network.

    Not frozen, as the records of `types`: one object is made for a picture, not one for each stage.

    Attributes:
        item: what was decoded.
        tensors: uint8 (H, W, channels), what the network is shown, as of a `Frame`; () once it has seen it.
        map: uint8 (H, W), what the network said of it; None before.
        size: (height, width) of the picture.
        kept: what the worker keeps of it; None where its outputs need nothing but the map.
        weight: bytes of what is kept.
        unlike: as of a `Frame`.
    """

    __slots__ = ("item", "kept", "map", "size", "tensors", "unlike", "weight")

    def __init__(
        self,
        item: Item,
        tensors: tuple[Pixels, ...],
        size: Size,
        kept: Kept | None,
        weight: int,
        unlike: float | None,
    ) -> None:
        self.item, self.tensors, self.size, self.kept, self.weight = item, tensors, size, kept, weight
        self.unlike = unlike
        self.map: Pixels | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of pixels, here and in the worker."""
        here = self.tensors if self.map is None else (*self.tensors, self.map)
        return self.weight + sum(array.nbytes for array in here)


class Finished(NamedTuple):
    """What a worker has written of a picture: the size of each file, and what people should know."""

    sizes: tuple[int, ...]
    notes: tuple[str, ...]
    render_seconds: float
    write_seconds: float


class PictureWorkers:
    """Has workers prepare and finish pictures; all methods may be called from several threads.

    Args:
        workers: that know FUNCTIONS.
        view: how the network sees pictures; gives the buffers, and infers.
        outputs: what is wanted of each picture, and where it goes.
        threshold: probability from which a pixel counts.
        at_least: as for `images.read`.
        max_pixels: as for `images.read`.
        channels: as for `images.read`.
        cleanup: what masks are cleaned of.
        measuring: how masks are measured.
    """

    def __init__(
        self,
        workers: Workers,
        view: View,
        outputs: OutputTree,
        *,
        threshold: float,
        at_least: Size | None,
        max_pixels: int,
        channels: Channels | None = None,
        cleanup: Cleanup = UNTOUCHED,
        measuring: Measuring = Measuring(),  # noqa: B008 - it has no state
    ) -> None:
        self.workers, self.view, self.outputs = workers, view, outputs
        spec = asdict(view.backend.spec)
        del spec["training"], spec["domain"]
        setup = {
            "spec": spec,
            "threshold": threshold,
            "folder": outputs.folder,
            "kinds": outputs.kinds,
            "style": asdict(outputs.style),
            "placer": asdict(view.placer),
            "refine": view.options.refine,
            "cleanup": asdict(cleanup),
            "range": str(view.options.range),
            "at_least": at_least,
            "max_pixels": max_pixels,
            "channels": channels,
            "measuring": asdict(measuring),
            "domains": [asdict(domain) for domain in view.domains],
            "reader": isolation.READER,
            "time_limit": isolation.TIME_LIMIT,
        }
        self._setup = json.dumps(setup).encode() + b"\n"  # goes with each request: any worker can answer it

    def prepare(self, item: Item) -> Prepared:
        """Have a picture decoded and placed.

        Raises:
            DecoderCrashed: the picture ended its decoder twice, or was not decoded within the time limit.
            ImageError, ImageTooLarge: as for `images.read`; or its pixels cannot be handed over.
            RunError: no worker can be started.
        """
        number = self.workers.number()
        tensors: tuple[Pixels, ...] = ()

        def receive(head: bytes) -> tuple[memoryview, ...]:
            nonlocal tensors
            height, width, *_ = _PREPARED.unpack(head)
            tensors = self.view.buffers((height, width))
            return tuple(tensor.data.cast("B") for tensor in tensors)

        try:
            copy = json.dumps([item.path, remote.local_path(item.path)]).encode()
        except OSError as error:
            reason = "no such file" if isinstance(error, FileNotFoundError) else error.strerror
            raise ImageError(f"{item.path}: {reason}") from error
        request = self._setup + b"[%d,%s]" % (number, copy)
        try:
            answer = self.workers.ask(_PREPARE, request, receive=receive)
        except Died as death:
            raise isolation.crash_error(item.path, death, isolation.TIME_LIMIT) from None
        except OSError as error:
            raise isolation.no_space_error(item.path, error) from error
        height, width, weight, unlike = _PREPARED.unpack(answer.head)
        kept = Kept(answer.worker, number) if weight else None
        return Prepared(item, tensors, (height, width), kept, weight, None if math.isnan(unlike) else unlike)

    def infer(self, pictures: Sequence[Prepared]) -> Sequence[Prepared]:
        """Run the network on a batch; its input is let go."""
        maps = self.view.infer(
            [picture.tensors for picture in pictures], [picture.size for picture in pictures]
        )
        for picture, map in zip(pictures, maps, strict=True):
            picture.map, picture.tensors = map, ()
        return pictures

    def finish(self, picture: Prepared) -> Finished:
        """Have all outputs of a picture drawn, encoded and written, each whole or not at all.

        Raises:
            EncodeError: one cannot be encoded; the message names the picture and the kind. Or drawing them
                has ended two workers.
            ImageError: the picture was to be decoded again, and is not what it was; or there is no space to
                hand over its map.
            OutputError: a file cannot be written.
            RunError: no worker can be started.
        """
        item, kept = picture.item, picture.kept
        copy = item.path, remote.local_path(item.path)
        assert picture.map is not None, "the network has not seen it"
        number = 0 if kept is None else kept.number
        values = [number, copy, item.key, *picture.size, picture.unlike]
        request = self._setup + json.dumps(values).encode()
        try:
            answer = self.workers.ask(
                _FINISH, request, (np.ascontiguousarray(picture.map).data,), kept=kept
            ).head
        except Died as death:
            raise _crash_error(item.path, death) from None
        except OSError as error:
            raise isolation.no_space_error(item.path, error) from error
        seconds = _FINISHED.unpack_from(answer)
        kinds = len(self.outputs.kinds)
        sizes = struct.unpack_from(f"<{kinds}Q", answer, _FINISHED.size)
        notes = answer[_FINISHED.size + 8 * kinds :]
        return Finished(sizes, tuple(json.loads(notes)) if notes else (), *seconds)


def _crash_error(path: str, death: Died) -> UnetBatchError:
    """Make the error of a picture that ended two workers while its outputs were drawn or written."""
    if death.code == TIMED_OUT:
        return isolation.crash_error(path, death, isolation.TIME_LIMIT)
    if death.was_killed:
        return EncodeError(
            f"{path}: its worker was killed (SIGKILL) twice while it made the outputs, as the system does "
            "when memory runs out",
            hint="take fewer workers, or set a lower limit of pixels",
        )
    said = death.said and f": {death.said}"
    return EncodeError(
        f"{path}: its worker {death.how} twice while it made the outputs{said}",
        hint="unexpected; please report it with the file",
    )


# In the worker's process ------------------------------------------------------------------------------------


class _Setup:
    """What all requests of a run have in common."""

    def __init__(self, text: bytes) -> None:
        values = json.loads(text)
        spec = values["spec"]
        names, colours = spec["classes"]["names"], spec["classes"]["colours"]
        spec["classes"] = ClassTable(tuple(names), tuple(map(tuple, colours)))
        self.spec = ModelSpec(**spec)
        self.threshold: float = values["threshold"]
        self.outputs = OutputTree(values["folder"], values["kinds"], Style(**values["style"]))
        self.place = Placer.parse(values["placer"])
        self.refine: bool = values["refine"]
        self.cleanup = Cleanup(**values["cleanup"])
        self.measuring = Measuring.restore(values["measuring"])
        self.domains = tuple(Domain(**domain) for domain in values["domains"])
        self.needs_pixels = self.outputs.need_pixels or self.refine
        names = ("reader", "time_limit", "at_least", "max_pixels", "range", "channels")
        self._how = [values[name] for name in names]

    def decode(self, path: str) -> tuple[Frame, Pixels]:
        """Decode a picture; what its outputs need of it, and what there is of its pixels."""
        picture = isolation.read(path, *self._how)
        frame = Frame(
            Item(path),
            self.place(picture.size),
            (),
            picture.pixels if self.needs_pixels else None,
            picture.missing,
            picture.alpha if self.needs_pixels else None,
            picture.metadata,
            picture.notes,
        )
        return frame, picture.pixels


_setup = lru_cache(1)(_Setup)


def _read_request(request: bytes) -> tuple[_Setup, Any]:
    setup, _, values = request.partition(b"\n")
    return _setup(setup), json.loads(values)


def prepare(request: bytes, data: memoryview, kept: dict[int, Any]) -> tuple[bytes, list[Pixels]]:
    """Decode and place a picture; keep what its outputs will need."""
    setup, (number, (path, copy)) = _read_request(request)
    remote.adopt(path, copy)
    frame, pixels = setup.decode(path)
    tensors = setup.place.show(pixels, frame.placement.source)
    weight = 0
    if frame.pixels is not None or frame.missing is not None or frame.notes or frame.metadata.geo:
        arrays = (frame.pixels, frame.missing, frame.alpha)
        weight = 1 + sum(array.nbytes for array in arrays if array is not None)
        kept[number] = frame
    unlike = domain.unlike(setup.domains, tensors, frame.placement)
    far = math.nan if unlike is None else unlike
    return _PREPARED.pack(*frame.placement.source, weight, far), list(tensors)


def finish(request: bytes, data: memoryview, kept: dict[int, Any]) -> tuple[bytes, list[Pixels]]:
    """Draw, encode and write all outputs of a picture, given its map."""
    begun = time.perf_counter()
    setup, (number, (path, copy), key, height, width, unlike) = _read_request(request)
    remote.adopt(path, copy)
    try:
        frame = _frame(setup, kept.pop(number, None), number, path, (height, width))
        frame = replace(frame, notes=frame.notes + domain.notes_on(unlike), unlike=unlike)
        map = np.frombuffer(data, np.uint8).reshape(frame.placement.network)
        prediction, style = Prediction(frame, map), setup.outputs.style
        result = Result(
            path,
            setup.spec,
            setup.threshold,
            prediction,
            refine=setup.refine,
            cleanup=setup.cleanup,
            style=style,
            measuring=setup.measuring,
        )
        encoded = result.encode_all(setup.outputs.kinds)
        notes = result.notes_on(setup.outputs.kinds)
    except UnetBatchError:
        raise
    except Exception as error:
        raise EncodeError(
            f"{path}: {type(error).__name__}: {error}", hint="unexpected; please report it with the file"
        ) from error
    drawn = time.perf_counter()
    for kind, contents in encoded:
        write_atomic(setup.outputs.path(kind, key), contents)
    seconds = drawn - begun, time.perf_counter() - drawn
    sizes = struct.pack(f"<{len(encoded)}Q", *(len(contents) for _, contents in encoded))
    return _FINISHED.pack(*seconds) + sizes + (json.dumps(notes).encode() if notes else b""), []


def _frame(setup: _Setup, frame: Frame | None, number: int, path: str, size: Size) -> Frame:
    """What the outputs of a picture need of it: what was kept, nothing, or what is now decoded again."""
    if frame is None and number:
        frame, _ = setup.decode(path)
        if frame.placement.source != size:
            raise ImageError(f"{path}: changed while the run read it", hint="run again")
    return frame or Frame(Item(path), setup.place(size), (), None)
