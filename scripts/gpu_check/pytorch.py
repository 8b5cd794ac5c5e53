"""The sections that need PyTorch: what the engines are compared with, and whole runs."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.gpu_check import measure, sections
from scripts.gpu_check.engines import beside_engine
from scripts.gpu_check.networks import write_checkpoint
from scripts.gpu_check.sections import MAIN_BATCH, Data, Save, Skip
from unet_batch.errors import BackendError

if TYPE_CHECKING:
    from unet_batch.engine.proof import Reference
    from unet_batch.inference.backends.base import Backend
    from unet_batch.model.checkpoint import Checkpoint
    from unet_batch.types import ModelSpec

# Speed ------------------------------------------------------------------------------------------------------

AS_BACKEND = "CUDA graph of the kernels that our backend takes"
ROUND = 0.3  # seconds of a round at most: enough for a rate, and seven batches of three networks take long


def torch_speed(
    data: Data,
    save: Save,
    names: Sequence[str],
    models: str,
    sizes: Sequence[int],
    rounds: int,
    batches: int,
    device: str,
) -> None:
    """PyTorch eager and through CUDA graphs at several batches, and our backend with copies.

    `MAIN_BATCH` comes first, so that a section that is cut off has it.
    """
    torch = _torch(device)
    from unet_batch.inference.backends.torch import DTYPES, TorchBackend, pick_precision
    from unet_batch.model.graph import Graph

    data["entries"] = []
    dtype = DTYPES[pick_precision(torch.device(device))[0]]
    for model in names:
        loaded = _load(model, models)
        reference, spec = _reference(loaded), loaded.spec
        usual = _usual_model(torch, loaded, device)
        folded = Graph(loaded.model, spec, dtype).eval().to(device)
        for batch in sorted(sizes, key=lambda size: (size != MAIN_BATCH, size)):
            stack = torch.from_numpy(measure.repeated(reference, batch)[0]).to(device)
            entry = _new_entry(torch, model, batch)
            data["entries"].append(entry)
            repeat = functools.partial(
                _through_graph, torch, functools.partial(folded, stack), spec, rounds, batches, batch, device
            )
            if batch == max(sizes) or batch == MAIN_BATCH:
                entry["engine"][AS_BACKEND] = alone = repeat(benchmark=False)
                with TorchBackend(loaded, device, batch_size=batch) as backend:
                    found = measure.pipelined(backend, reference, rounds, batches, backend.streams)
                entry["pipeline"]["TorchBackend"] = beside_engine(
                    sections.speed(found, spec), {AS_BACKEND: alone}
                )
                save()
            ways: dict[str, Callable[[], object]] = {}
            if batch == MAIN_BATCH:
                ready = _usual_input(torch, stack, loaded)
                ways["eager, channels_last half, as it is usually written"] = functools.partial(usual, ready)
            ways["eager, BatchNorm folded, uint8 in and out"] = functools.partial(folded, stack)

            def tried_out(_: int) -> None:
                with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, benchmark=True):
                    for name, work in ways.items():  # noqa: B023 - called at once
                        found = _timed_torch(work, rounds, batches, batch, device)  # noqa: B023
                        entry["engine"][name] = sections.speed(found, spec)  # noqa: B023
                        save()
                entry["engine"]["the same through a CUDA graph"] = repeat(benchmark=True)  # noqa: B023
                save()

            # PyTorch remembers, in each thread, which kernel it took for a shape, and then asks neither
            # whether it should be tried out nor whether it was.
            measure.in_threads(1, tried_out)


def _new_entry(torch: Any, model: str, batch: int) -> Data:
    """What is measured of one model at one batch, at first without figures."""
    return {
        "backend": f"torch {torch.__version__}",
        "model": model,
        "batch": batch,
        "engine": {},
        "pipeline": {},
    }


def _through_graph(
    torch: Any,
    work: Callable[[], object],
    spec: ModelSpec,
    rounds: int,
    batches: int,
    batch: int,
    device: str,
    *,
    benchmark: bool,
) -> Data:
    """Speed of `work` as a CUDA graph that is replayed; the reason where there is none.

    `benchmark`: cuDNN tries its kernels out, as the backend never lets it: each run is to have the same.
    """
    if device == "cpu":
        return {"reason": "no CUDA graphs on a processor"}
    try:
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, benchmark=benchmark):
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):  # libraries load and allocate in the first runs
                for _ in range(3):
                    work()
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                kept = work()  # its memory is the graph's
            found = _timed_torch(graph.replay, rounds, batches, batch, device)
            del kept
    except RuntimeError as error:
        return {"reason": " ".join(str(error).split())[:200]}
    return sections.speed(found, spec)


def torch_compiled(
    data: Data, save: Save, model: str, models: str, mode: str, rounds: int, batches: int, device: str
) -> None:
    """torch.compile of the folded graph, its masks compared before it is timed."""
    torch = _torch(device)
    from unet_batch.engine import proof
    from unet_batch.model.graph import Graph

    loaded = _load(model, models)
    reference = _reference(loaded)
    pictures, truth = measure.repeated(reference, MAIN_BATCH)
    stack = torch.from_numpy(pictures).to(device)
    entry = _new_entry(torch, model, MAIN_BATCH)
    data["entries"] = [entry]
    # On a processor a compiler of C++ would be needed, and minutes.
    how = {"backend": "eager"} if device == "cpu" else {"mode": mode}
    dtype = torch.float32 if device == "cpu" else torch.float16
    with torch.no_grad():
        compiled = torch.compile(Graph(loaded.model, loaded.spec, dtype).eval().to(device), **how)
        begun = time.perf_counter()
        for _ in range(3):  # the first compiles, the second records the CUDA graph
            maps = compiled(stack).cpu().numpy()
        entry["compile_seconds"] = time.perf_counter() - begun
        entry["parity"] = proof.as_dict(proof.compare(maps, truth, loaded.spec))
        save()
        found = _timed_torch(lambda: compiled(stack), rounds, batches, MAIN_BATCH, device)
    entry["engine"][f'torch.compile(mode="{mode}")'] = sections.speed(found, loaded.spec)


def _timed_torch(work: Callable[[], object], rounds: int, batches: int, batch: int, device: str) -> Data:
    """Rounds of `work` in PyTorch's current stream, GPU time between events; of `batches` at the most."""
    clock: Callable[[int], tuple[float, str]]
    if device == "cpu":
        clock = functools.partial(_wall_seconds, work)
    else:
        from unet_batch.inference.backends.cuda_memory import Resource

        # The legacy default stream, not one of ours: what `work` queues must be what is timed.
        memory, stream = sections.open_provider("torch"), Resource(_torch(device).cuda.current_stream())
        clock = functools.partial(measure.gpu_seconds, memory, stream, work)
    clock(3)
    count = max(3, min(batches, int(3 * ROUND / clock(3)[0])))
    timed = [clock(count) for _ in range(rounds)]
    return measure.rates([seconds for seconds, _ in timed], count, batch) | {"clock": timed[0][1]}


def _wall_seconds(work: Callable[[], object], count: int) -> tuple[float, str]:
    begun = time.perf_counter()
    for _ in range(count):
        work()
    return time.perf_counter() - begun, "wall"


def _torch(device: str = "cuda") -> Any:
    """PyTorch, able to use the device."""
    if not sections.present("torch"):
        raise Skip("PyTorch is not installed")
    import torch

    if device == "cpu":
        return torch
    sections.need_gpu()
    if not torch.cuda.is_available():
        raise Skip(f"PyTorch {torch.__version__} cannot use the GPU")
    return torch


def _load(model: str, folder: str) -> Checkpoint:
    from unet_batch.model import checkpoint

    return checkpoint.load(write_checkpoint(model, folder))


def _reference(loaded: Checkpoint) -> Reference:
    """A few drawn pictures with PyTorch's float32 maps, computed on the CPU."""
    import numpy as np

    from unet_batch.engine import export as exporter
    from unet_batch.engine.pictures import FIRST_SCENE
    from unet_batch.engine.proof import Reference
    from unet_batch.media import geometry
    from unet_batch.scenes import draw

    size = loaded.spec.input_size
    at = (2 * size[0], 2 * size[1])  # as photos are larger than what the network sees
    drawn = [draw(FIRST_SCENE + number, at)[0] for number in range(4)]
    pictures = np.stack([geometry.to_network(photo, geometry.place(at, size)) for photo in drawn])
    return Reference(pictures, exporter.reference_maps(loaded, pictures))


def _usual_model(torch: Any, loaded: Checkpoint, device: str) -> Any:
    """The network in half, channels_last, in float32 on a processor."""
    model = copy.deepcopy(loaded.model).eval()
    return (model if device == "cpu" else model.half()).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def _usual_input(torch: Any, stack: Any, loaded: Checkpoint) -> Any:
    """uint8 (N, H, W, 3) -> normalised (N, 3, H, W), channels_last, half on a GPU."""
    mean, std = (
        torch.tensor(values, device=stack.device).view(1, 3, 1, 1)
        for values in (loaded.spec.mean, loaded.spec.std)
    )
    ready = (stack.permute(0, 3, 1, 2).float() / 255 - mean) / std
    return (ready.half() if stack.is_cuda else ready).contiguous(memory_format=torch.channels_last)


def out_of_memory_torch(data: Data, save: Save, model: str, models: str) -> None:
    """As `engines.out_of_memory`, of PyTorch."""
    from unet_batch.inference.backends.torch import TorchBackend

    loaded = _load(model, models)
    reference, memory = _reference(loaded), sections.open_provider("torch")
    data |= {"model": model, "provider": "torch"}
    data |= measure.starve(lambda: TorchBackend(loaded, "cuda", batch_size=256), memory, reference)
    sections.judge_starved(data)


# From files to files ----------------------------------------------------------------------------------------


def photos(data: Data, save: Save, folder: str, drawn: int, items: int, size: Sequence[int]) -> None:
    """Draw photos, and link each under several names: one that comes again costs the same to decode."""
    from unet_batch.scenes import write_samples

    begun = time.perf_counter()
    paths = write_samples(os.path.join(folder, "drawn"), drawn, (size[0], size[1]), 5, with_masks=False)
    data |= {"drawn": len(paths), "size": list(size), "bytes": sum(map(os.path.getsize, paths))}
    names = os.path.join(folder, "items")
    os.makedirs(names, exist_ok=True)
    for number in range(items):
        link = os.path.join(names, f"{number:05}.jpg")
        if not os.path.exists(link):
            try:
                os.link(paths[number % len(paths)], link)
            except OSError:  # not every file system has them
                shutil.copyfile(paths[number % len(paths)], link)
    data |= {"items": items, "seconds": time.perf_counter() - begun}


def end_to_end(
    data: Data,
    save: Save,
    model: str,
    models: str,
    folder: str,
    engines: str,
    flavours: Sequence[str],
    rounds: int,
    device: str,
) -> None:
    """`unet-batch run` with each backend, in threads and in processes, and the loop as usually written."""
    torch = _torch(device)
    from unet_batch.pipeline import cpu_count

    items = _items(folder)
    loaded = _load(model, models)
    data |= {"model": model, "cores": cpu_count(), "items": len(items), "entries": [], "masks": []}
    wrong: list[str] = []
    for make in _backends(loaded, model, engines, flavours, device):
        compared, problems = _compare_masks(make, loaded, items, 8)
        data["masks"].append(compared | {"model": model})
        wrong += problems
        for isolate in (False, True):
            data["entries"].append(_run(make, os.path.dirname(items[0]), folder, rounds, isolate))
            save()
    paths = items[:96]
    with tempfile.TemporaryDirectory(dir=folder) as out:
        _usual_loop(torch, loaded, paths[:MAIN_BATCH], out, device)
        seconds = [_usual_loop(torch, loaded, paths, out, device) for _ in range(rounds)]
    rates = [len(paths) / second for second in seconds]
    data["usual_loop"] = {"items": len(paths), "batch": MAIN_BATCH, "images_per_s": measure.spread(rates)}
    if wrong:
        raise BackendError("; ".join(wrong))


def _items(folder: str) -> list[str]:
    """The photos that `photos` drew, each under several names."""
    items = os.path.join(folder, "items")
    if not os.path.isdir(items):
        raise Skip("no photos were drawn")
    return [os.path.join(items, name) for name in sorted(os.listdir(items))]


def _backends(
    loaded: Checkpoint, model: str, engines: str, flavours: Sequence[str], device: str
) -> Iterator[Callable[[], Backend]]:
    """What makes each backend for a model: engines of the installed libraries, and PyTorch."""
    from unet_batch.inference.backends.torch import TorchBackend

    for name in flavours:
        with contextlib.suppress(Skip):
            library = sections.open_flavour(name)
            for found, engine in sections.built_engines(library, engines, (MAIN_BATCH,)):
                if found == model:
                    yield functools.partial(sections.open_engine, library, engine)
    yield functools.partial(TorchBackend, loaded, device)


def _run(make: Callable[[], Backend], items: str, folder: str, rounds: int, isolate: bool) -> Data:
    """Rounds of a run; `isolate` decodes, draws and writes in processes, beyond Python's lock."""
    from unet_batch.inference.segmenter import Segmenter
    from unet_batch.run.execute import execute
    from unet_batch.run.options import RunOptions
    from unet_batch.run.plan import prepare

    with (
        tempfile.TemporaryDirectory(dir=folder) as out,
        Segmenter(make(), isolate=isolate) as segmenter,
    ):

        def once() -> Any:
            plan = prepare(RunOptions((items,), out, overwrite=True))
            return execute(plan, segmenter)

        once()  # loads kernels, starts processes, fills the page cache
        reports = sorted((once() for _ in range(rounds)), key=lambda report: report.seconds)
        middle = reports[len(reports) // 2]
        if any(report.failed for report in reports):
            raise BackendError(f"{middle.failed} pictures failed: {middle.failures[:1]}")
        slowest = max(stage.busy / stage.workers for stage in middle.stages)
        return {
            "backend": segmenter.backend.name,
            "precision": segmenter.backend.precision,
            "batch": segmenter.backend.batch_size,
            "workers": segmenter.workers,
            "isolate": isolate,
            "images_per_s": measure.spread([report.images_per_second for report in reports]),
            "slowest_images_per_s": middle.done / slowest if slowest else None,
            "seconds": statistics.median(report.seconds for report in reports),
            "bottleneck": middle.bottleneck,
            "stages": [dataclasses.asdict(stage) for stage in middle.stages],
            "notes": list(segmenter.backend.notes),
        }


def _usual_loop(torch: Any, loaded: Checkpoint, paths: Sequence[str], out: str, device: str) -> float:
    """Seconds of decoding, one batch on the GPU and writing in turn, in one thread."""
    import cv2
    import numpy as np

    from scripts import carvana

    height, width = loaded.spec.input_size
    model = _usual_model(torch, loaded, device)
    begun = time.perf_counter()
    with torch.inference_mode():
        for start in range(0, len(paths), MAIN_BATCH):
            part = paths[start : start + MAIN_BATCH]
            photos = [carvana.read_rgb(path) for path in part]
            small = np.stack([cv2.resize(photo, (width, height)) for photo in photos])
            found = model(_usual_input(torch, torch.from_numpy(small).to(device), loaded)).float()
            answers = found.sigmoid()[:, 0] if found.shape[1] == 1 else found.argmax(1).float()
            for path, photo, answer in zip(part, photos, answers.cpu().numpy(), strict=True):
                full = cv2.resize(answer, (photo.shape[1], photo.shape[0]))
                cv2.imwrite(os.path.join(out, f"{Path(path).stem}.png"), (full > 0.5).astype(np.uint8) * 255)
    return time.perf_counter() - begun


# Masks ------------------------------------------------------------------------------------------------------

LEAST_DICE = 0.999


def masks(
    data: Data,
    save: Save,
    names: Sequence[str],
    models: str,
    folder: str,
    engines: str,
    flavours: Sequence[str],
    photos: int,
    device: str,
) -> None:
    """Masks of photos by each backend against those of PyTorch in float32 on the processor."""
    _torch(device)
    items = _items(folder)
    data["masks"], wrong = [], []
    for model in names:
        loaded = _load(model, models)
        for make in _backends(loaded, model, engines, flavours, device):
            compared, problems = _compare_masks(make, loaded, items, photos)
            data["masks"].append(compared | {"model": model})
            wrong += problems
            save()
    if wrong:
        raise BackendError("; ".join(wrong))


def _compare_masks(
    make: Callable[[], Backend], loaded: Checkpoint, items: Sequence[str], photos: int
) -> tuple[Data, list[str]]:
    """Dice of masks at the photos' own size, Carvana's where they are at hand, and what is wrong."""
    import numpy as np

    from scripts import carvana
    from unet_batch.engine import export as exporter
    from unet_batch.engine import proof
    from unet_batch.inference.segmenter import Segmenter
    from unet_batch.types import Item, Prediction

    real = sorted(map(str, (carvana.data_folder() / "carvana" / "images").glob("*.jpg")))
    paths = (real or items)[:photos]
    with Segmenter(make()) as segmenter:
        frames = [segmenter.decode(Item(path), keep_pixels=False) for path in paths]
        size = segmenter.backend.batch_size
        with segmenter.backend.thread():
            found = [
                each for at in range(0, len(frames), size) for each in segmenter.infer(frames[at : at + size])
            ]
        maps = exporter.reference_maps(loaded, np.stack([frame.network_input for frame in frames]))
        truth = [Prediction(frame, map) for frame, map in zip(frames, maps, strict=True)]
        pixels = [
            np.concatenate([segmenter.mask(each).ravel() for each in side])[None, None]
            for side in (found, truth)
        ]
        parity = proof.compare(pixels[0], pixels[1], loaded.spec)
        name = f"{segmenter.backend.name} {segmenter.backend.precision}"
    compared = {
        "backend": name,
        "photos": len(paths),
        "real": bool(real),
        "dice": parity.dice,
        "pixels": parity.pixels,
    }
    wrong = [] if parity.dice >= LEAST_DICE else [f"{name}: Dice {parity.dice:.5f}, {LEAST_DICE} expected"]
    return compared, wrong


FUNCTIONS: dict[str, Callable[..., None]] = {
    function.__name__: function
    for function in (torch_speed, torch_compiled, out_of_memory_torch, photos, end_to_end, masks)
}
