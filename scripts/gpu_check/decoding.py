"""Photos decoded on the GPU by nvImageCodec: measured, so that it can be decided; no backend of the program.

What has to hold before it is built: it is faster than the cores beside it, its pixels are those of our
decoder to within one level, and a damaged file is an error.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from scripts.gpu_check import measure, sections
from scripts.gpu_check.sections import Data, Save, Skip

if TYPE_CHECKING:
    from unet_batch.types import Pixels, Size

NEEDS = ("simplejpeg", "PIL", "cv2")
LIBRARY = "nvidia.nvimgcodec"
INSTALL = "pip install nvidia-nvimgcodec-cu13 nvidia-nvjpeg-cu13"
# The smaller size at which `run` decodes these photos for a network of 160x240.
REDUCED: Size = (320, 480)
_BATCH = 32


def photo_decoding(
    data: Data, save: Save, folder: str, photos: int, compared: int, rounds: int, device: str
) -> None:
    """Photos a second of our decoder on all cores and of nvImageCodec; their pixels; what damage becomes.

    Args:
        data, save: see `sections`.
        folder: of the drawn photos.
        photos: how many a round decodes.
        compared: of how many the pixels are compared.
        rounds: how often.
        device: "cuda", or "cpu" for the library's own decoders on the processor.
    """
    drawn = os.path.join(folder, "drawn", "photos")
    if not os.path.isdir(drawn):
        raise Skip("no photos were drawn")
    files = [_read(os.path.join(drawn, name)) for name in sorted(os.listdir(drawn))]
    from unet_batch.media import images
    from unet_batch.pipeline import cpu_count

    data |= {"photos": photos, "cores": cpu_count(), "decoders": [], "damaged": []}
    work = list(itertools.islice(itertools.cycle(files), photos))
    with ThreadPoolExecutor(cpu_count()) as pool:
        for name, least in (("ours, whole", None), ("ours, reduced as `run` does", REDUCED)):
            decode = functools.partial(images.read_bytes, at_least=least)
            seconds = _time(lambda: pool.map(decode, work), rounds)  # noqa: B023 - called at once
            data["decoders"].append(_entry(name, seconds, photos))
            save()
    if not sections.present(LIBRARY):
        raise Skip(f"{LIBRARY} is not installed: {INSTALL}")
    if device != "cpu":
        sections.need_gpu()
    nvimgcodec = importlib.import_module(LIBRARY)
    for name, backend in _ways(nvimgcodec, device):
        decoder = _decoder(nvimgcodec, backend, device)
        if _decode(nvimgcodec, decoder, files[:1])[0] is None:
            data["decoders"].append({"decoder": name, "reason": "it does not decode a sound photo"})
            save()
            continue
        seconds = _time(lambda: _decode(nvimgcodec, decoder, work), rounds)  # noqa: B023 - called at once
        compared_pixels = _compare(nvimgcodec, decoder, files[:compared])
        data["decoders"].append(_entry(name, seconds, photos) | compared_pixels)
        data["damaged"] += [{"decoder": name} | each for each in _damage(nvimgcodec, decoder, files[0])]
        save()


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _time(work: Callable[[], Iterable[object]], rounds: int) -> list[float]:
    """Seconds of each round, a first one left out."""
    seconds = []
    for _ in range(1 + rounds):
        begun = time.perf_counter()
        deque(work(), maxlen=0)  # to its end
        seconds.append(time.perf_counter() - begun)
    return seconds[1:]


def _entry(name: str, seconds: Sequence[float], photos: int) -> Data:
    return {"decoder": name, "photos_per_s": measure.spread([photos / second for second in seconds])}


def _ways(nvimgcodec: Any, device: str) -> list[tuple[str, Any]]:
    """The parts of the library that decode JPEG, each by itself."""
    if device == "cpu":
        return [("nvImageCodec, processor", nvimgcodec.CPU_ONLY)]
    return [
        ("nvImageCodec, GPU", nvimgcodec.GPU_ONLY),
        ("nvImageCodec, GPU and processor", nvimgcodec.HYBRID_CPU_GPU),
        ("nvImageCodec, JPEG engine", nvimgcodec.HW_GPU_ONLY),
    ]


def _decoder(nvimgcodec: Any, backend: Any, device: str) -> Any:
    """A decoder that interpolates halved colours as libjpeg does."""
    return nvimgcodec.Decoder(
        device_id=nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY if device == "cpu" else 0,
        backends=[nvimgcodec.Backend(backend)],
        options=":fancy_upsampling=1",
    )


def _decode(nvimgcodec: Any, decoder: Any, files: Sequence[bytes]) -> list[Any]:
    """Images, on the device; None for each that is refused. All of them are done when it returns."""
    found: list[Any] = []
    for start in range(0, len(files), _BATCH):
        streams = [nvimgcodec.CodeStream(each) for each in files[start : start + _BATCH]]
        found += decoder.decode(streams)
    if sections.gpu_name() is not None:
        import torch

        torch.cuda.synchronize()
    return found


def _pixels(image: Any) -> Pixels:
    import numpy as np

    return np.asarray(image.cpu())


def _compare(nvimgcodec: Any, decoder: Any, files: Sequence[bytes]) -> Data:
    """Difference to our decoder's pixels in levels, and the share of them that is off by more than one."""
    import numpy as np

    from unet_batch.media import images

    apart = [
        np.abs(_pixels(image).astype(np.int16) - images.read_bytes(each).pixels)
        for image, each in zip(_decode(nvimgcodec, decoder, files), files, strict=True)
    ]
    return {
        "compared": len(apart),
        "largest": max(int(each.max()) for each in apart),
        "mean": sum(float(each.mean()) for each in apart) / len(apart),
        "beyond_one": sum(float((each > 1).mean()) for each in apart) / len(apart),
    }


def _damage(nvimgcodec: Any, decoder: Any, sound: bytes) -> list[Data]:
    """What becomes of damaged files, drawn and real: decoded, or refused, by ours and by theirs."""
    from scripts import carvana
    from unet_batch.errors import ImageError
    from unet_batch.media import images

    middle = len(sound) // 2
    cases = {
        "cut in the middle": sound[:middle],
        "a hundred bytes of zeros": sound[:middle] + bytes(100) + sound[middle + 100 :],
        "a hundred bytes missing": sound[:middle] + sound[middle + 100 :],
        "last ten bytes missing": sound[:-10],
    }
    for path in sorted((carvana.data_folder() / "awkward").glob("*.jpg")):
        cases[path.stem] = path.read_bytes()
    found = []
    for name, file in cases.items():
        try:
            images.read_bytes(file)
            ours = "decoded"
        except ImageError as error:
            ours = error.message
        try:
            theirs = "refused" if _decode(nvimgcodec, decoder, [file])[0] is None else "decoded"
        except RuntimeError as error:
            theirs = f"refused: {error}"[:200]
        found.append({"file": name, "ours": ours, "theirs": theirs})
    return found


FUNCTIONS: dict[str, Callable[..., None]] = {"photo_decoding": photo_decoding}
