"""Decode in separate processes, so that a picture that crashes its decoder fails alone.

    with Workers(4, [isolation.DECODE]) as workers:
        picture = isolation.Decoders(workers).read("photo.jpg")  # same pixels, same errors as images.read

A decoder is a worker (`processes`) that imports `images` and nothing heavier (no torch). All pixels come over
to this process; `inference/workers.py` leaves them where they are.
"""

from __future__ import annotations

import base64
import functools
import json
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from unet_batch.errors import DecoderCrashed, ImageError, UnetBatchError, UsageError
from unet_batch.media.images import AUTO, MAX_PIXELS, Picture, Range
from unet_batch.processes import TIMED_OUT, Died, Workers, find_function, limit_time
from unet_batch.types import Metadata

if TYPE_CHECKING:
    from collections.abc import Sequence

    from unet_batch.types import Channels, Pixels, Size

DECODE = f"{__name__}:decode"
"""What workers must be able to do."""
TIME_LIMIT = 120.0
"""Default limit of seconds for one picture. Windows enforces none."""
READER = "unet_batch.media.images:read"
"""What decodes, with the signature of `images.read`."""
_ARRAYS = ("pixels", "missing", "alpha")


class Decoders:
    """Workers in place of `images.read`.

    Args:
        workers: that know `DECODE`; they stay open.
        time_limit: seconds for one picture.
        reader: what decodes, as "module:function"; None takes READER.

    Raises:
        UsageError: the limit is out of range.
    """

    def __init__(
        self, workers: Workers, *, time_limit: float = TIME_LIMIT, reader: str | None = None
    ) -> None:
        if not 0 < time_limit < 1e6:
            raise UsageError(f"{time_limit} s for each picture: above 0 expected")
        self._workers, self._time_limit, self._reader = workers, time_limit, reader or READER

    def read(
        self,
        path: str,
        *,
        at_least: Size | None = None,
        max_pixels: int = MAX_PIXELS,
        value_range: Range = AUTO,
        channels: Channels | None = None,
    ) -> Picture:
        """Decode a picture file as `images.read` does.

        Safe to call from many threads, which wait for a decoder to be free.

        Raises:
            DecoderCrashed: the picture ended its decoder, or was not decoded within the time limit.
            ImageError, ImageTooLarge: as for `images.read`; of its causes, only the number of an `OSError`
                arrives.
            RunError: no decoder can be started.
        """
        arrays: dict[str, Pixels] = {}

        def receive(answer: bytes) -> Sequence[memoryview]:
            shapes = json.loads(answer)["arrays"]
            arrays.update({name: np.empty(shape, np.uint8) for name, shape in shapes.items()})
            return [array.data.cast("B") for array in arrays.values()]

        request = [path, self._reader, self._time_limit, at_least, max_pixels, str(value_range), channels]
        try:
            answer = json.loads(self._workers.ask(DECODE, json.dumps(request).encode(), receive=receive).head)
        except Died as death:
            raise crash_error(path, death, self._time_limit) from None
        except OSError as error:
            raise no_space_error(path, error) from error
        except MemoryError as error:
            raise ImageError(f"{path}: not enough memory to decode this picture") from error
        missing, dpi = arrays.get("missing"), answer["dpi"]
        return Picture(
            arrays["pixels"],
            tuple(answer["size"]),
            missing=None if missing is None else missing.view(np.bool_),
            alpha=arrays.get("alpha"),
            metadata=Metadata(
                base64.b64decode(answer["exif"]),
                (dpi[0], dpi[1]) if dpi else None,
                tuple((tag, value) for tag, value in answer["geo"]),
            ),
            notes=tuple(answer["notes"]),
        )


def no_space_error(path: str, error: OSError) -> ImageError:
    """Make the error of a picture that did not fit into the file between worker and owner."""
    return ImageError(
        f"{path}: no space to hand over its pixels: {error.strerror}",
        hint="free some memory and temporary space, or leave --isolate out",
    )


def crash_error(path: str, death: Died, time_limit: float) -> DecoderCrashed:
    """Make the error of a picture whose decoder has died."""
    hint = (
        "the file is damaged, or made to do harm: leave it out, or save it anew with the program that made it"
    )
    if death.code == TIMED_OUT:
        return DecoderCrashed(f"{path}: not decoded within {time_limit:g} s", hint=hint)
    if death.was_killed:
        return DecoderCrashed(
            f"{path}: its decoder was killed (SIGKILL), as the system does when memory runs out",
            hint="take fewer workers, or set a lower limit of pixels",
        )
    said = death.said and f": {death.said}"
    return DecoderCrashed(f"{path}: its decoder {death.how}{said}", hint=hint)


# In the worker's process ------------------------------------------------------------------------------------


def decode(request: bytes, data: memoryview, kept: dict[int, Any]) -> tuple[bytes, list[Pixels]]:
    """Decode a picture, and answer with all of it."""
    picture = read(*json.loads(request))
    arrays = {
        name: np.ascontiguousarray(array).view(np.uint8)
        for name in _ARRAYS
        if (array := getattr(picture, name)) is not None
    }
    answer = {
        "arrays": {name: array.shape for name, array in arrays.items()},
        "size": picture.size,
        "exif": base64.b64encode(picture.metadata.exif).decode("ascii"),
        "dpi": picture.metadata.dpi,
        "geo": picture.metadata.geo,
        "notes": picture.notes,
    }
    return json.dumps(answer).encode(), list(arrays.values())


@functools.cache
def _keep_to_one_thread() -> None:
    """Keep OpenCV to the only thread of this process: there are as many processes as cores."""
    cv2.setNumThreads(1)


def read(
    path: str,
    reader: str,
    time_limit: float,
    at_least: Sequence[int] | None,
    max_pixels: int,
    value_range: str,
    channels: Sequence[int] | None = None,
) -> Picture:
    """Read a picture within a limit of time.

    Raises:
        ImageError: it cannot be read; for an error that nobody foresaw, in the words of `segmenter.as_error`.
    """
    _keep_to_one_thread()
    try:
        with limit_time(time_limit):
            picture: Picture = find_function(reader)(
                path,
                at_least=at_least and tuple(at_least),
                max_pixels=max_pixels,
                value_range=Range.parse(value_range),
                channels=channels and tuple(channels),
            )
            return picture
    except UnetBatchError:
        raise
    except Exception as error:
        raise ImageError(
            f"{path}: {type(error).__name__}: {error}", hint="unexpected; please report it with the file"
        ) from error
