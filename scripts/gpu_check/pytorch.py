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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.gpu_check import measure, sections
from scripts.gpu_check.networks import write_checkpoint
from scripts.gpu_check.sections import MAIN_BATCH, Data, Save, Skip
from unet_batch.errors import BackendError

if TYPE_CHECKING:
    from unet_batch.engine.proof import Reference
    from unet_batch.inference.backends.base import Backend
    from unet_batch.model.checkpoint import Checkpoint

# Speed ------------------------------------------------------------------------------------------------------


def torch_speed(data: Data, save: Save, names: Sequence[str], models: str, rounds: int, batches: int) -> None:
    """PyTorch eager: the network as the usual loop has it, the folded graph, and our backend."""
    torch = _torch()
    from unet_batch.inference.backends.torch import TorchBackend
    from unet_batch.model.graph import Graph

    data["entries"] = []
    for model in names:
        loaded = _load(model, models)
        flops = _flops(loaded)
        reference, widths = _reference(loaded), loaded.spec.widths
        pictures, _ = measure.repeated(reference, MAIN_BATCH)
        entry = _new_entry(torch, model)
        data["entries"].append(entry)
        stack = torch.from_numpy(pictures).cuda()
        usual = _usual_model(torch, loaded)
        folded = Graph(loaded.model, loaded.spec, torch.float16).eval().cuda()
        ready = _usual_input(torch, stack, loaded)
        for name, work in (
            ("eager, channels_last half, as it is usually written", functools.partial(usual, ready)),
            ("eager, BatchNorm folded, uint8 in and out", functools.partial(folded, stack)),
        ):
            with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, benchmark=True):
                entry["engine"][name] = sections.speed(
                    _timed_torch(work, rounds, batches, MAIN_BATCH), widths, flops
                )
            save()
        with TorchBackend(loaded, "cuda", batch_size=MAIN_BATCH) as backend:
            found = measure.pipelined(backend, reference, rounds, batches, backend.streams)
        entry["pipeline"]["TorchBackend"] = sections.speed(found, widths, flops)
        save()


def _new_entry(torch: Any, model: str) -> Data:
    """What is measured of one model, at first without figures."""
    return {
        "backend": f"torch {torch.__version__}",
        "model": model,
        "batch": MAIN_BATCH,
        "engine": {},
        "pipeline": {},
    }


def torch_compiled(
    data: Data, save: Save, model: str, models: str, mode: str, rounds: int, batches: int
) -> None:
    torch = _torch()
    from unet_batch.engine import proof
    from unet_batch.model.graph import Graph

    loaded = _load(model, models)
    reference = _reference(loaded)
    pictures, truth = measure.repeated(reference, MAIN_BATCH)
    stack = torch.from_numpy(pictures).cuda()
    entry = _new_entry(torch, model)
    data["entries"] = [entry]
    with torch.no_grad():
        compiled = torch.compile(Graph(loaded.model, loaded.spec, torch.float16).eval().cuda(), mode=mode)
        begun = time.perf_counter()
        for _ in range(3):  # the first compiles, the second records the CUDA graph
            maps = compiled(stack).cpu().numpy()
        entry["compile_seconds"] = time.perf_counter() - begun
        entry["parity"] = proof.as_dict(proof.compare(maps, truth, loaded.spec))
        save()
        found = _timed_torch(lambda: compiled(stack), rounds, batches, MAIN_BATCH)
    entry["engine"][f'torch.compile(mode="{mode}")'] = sections.speed(
        found, loaded.spec.widths, _flops(loaded)
    )


def _timed_torch(work: Callable[[], object], rounds: int, batches: int, batch: int) -> Data:
    """Rounds of `work` in PyTorch's current stream, GPU time between events."""
    from unet_batch.inference.backends.cuda_memory import Resource

    memory, torch = sections.open_provider("torch"), _torch()
    # The legacy default stream, not one of ours: what `work` queues must be what is timed.
    stream = Resource(torch.cuda.current_stream())
    measure.gpu_seconds(memory, stream, work, max(3, batches // 5))
    timed = [measure.gpu_seconds(memory, stream, work, batches) for _ in range(rounds)]
    return measure.rates([seconds for seconds, _ in timed], batches, batch) | {"clock": timed[0][1]}


def _flops(loaded: Checkpoint) -> int:
    """Of all convolutions for one picture, a multiplication and its addition counted as two."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        loaded.model(torch.zeros(1, loaded.spec.in_channels, *loaded.spec.input_size))
    return int(counter.get_total_flops())


def _torch() -> Any:
    if not sections.present("torch"):
        raise Skip("PyTorch is not installed")
    import torch

    if not torch.cuda.is_available():
        raise Skip(f"PyTorch {torch.__version__} cannot use the GPU")
    return torch


def _load(model: str, folder: str) -> Checkpoint:
    from unet_batch.model import checkpoint

    return checkpoint.load(write_checkpoint(model, folder))


def _reference(loaded: Checkpoint) -> Reference:
    """A few drawn pictures with PyTorch's float32 maps, computed on the CPU."""
    from unet_batch.engine import export as exporter
    from unet_batch.engine.pictures import proof_pictures
    from unet_batch.engine.proof import Reference

    pictures = proof_pictures((), loaded.spec, loaded.spec.input_size)[0][:4]
    return Reference(pictures, exporter.reference_maps(loaded, pictures))


def _usual_model(torch: Any, loaded: Checkpoint) -> Any:
    return copy.deepcopy(loaded.model).half().cuda().eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _usual_input(torch: Any, stack: Any, loaded: Checkpoint) -> Any:
    """uint8 (N, H, W, 3) on the GPU -> normalised half (N, 3, H, W), channels_last."""
    mean, std = (
        torch.tensor(values, device=stack.device).view(1, 3, 1, 1)
        for values in (loaded.spec.mean, loaded.spec.std)
    )
    ready = (stack.permute(0, 3, 1, 2).float() / 255 - mean) / std
    return ready.half().contiguous(memory_format=torch.channels_last)


def out_of_memory_torch(data: Data, save: Save, model: str, models: str) -> None:
    from unet_batch.inference.backends.torch import TorchBackend

    memory, loaded = sections.open_provider("torch"), _load(model, models)
    data |= {"model": model, "provider": "torch"}
    data |= measure.starve(lambda: TorchBackend(loaded, "cuda", batch_size=256), memory, _reference(loaded))
    sections.judge_starved(data)


# From files to files ----------------------------------------------------------------------------------------


def photos(data: Data, save: Save, folder: str, drawn: int, items: int) -> None:
    """Draw photos, and link each under several names: one that comes again costs the same to decode."""
    from unet_batch.scenes import write_samples

    begun = time.perf_counter()
    paths = write_samples(os.path.join(folder, "drawn"), drawn, (1280, 1918), 5, with_masks=False)
    data |= {"drawn": len(paths), "size": [1280, 1918], "bytes": sum(map(os.path.getsize, paths))}
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
) -> None:
    """`unet-batch run` with each backend, and the loop that is usually written, on PyTorch's GPU."""
    torch = _torch()
    from unet_batch.inference.backends.torch import TorchBackend
    from unet_batch.pipeline import cpu_count

    items = os.path.join(folder, "items")
    if not os.path.isdir(items):
        raise Skip("no photos were drawn")
    loaded = _load(model, models)
    data |= {"model": model, "cores": cpu_count(), "items": len(os.listdir(items)), "entries": []}
    makers: list[Callable[[], Backend]] = []
    for name in flavours:
        with contextlib.suppress(Skip):
            library = sections.open_flavour(name)
            makers += [
                lambda library=library, engine=engine: sections.open_engine(library, engine)  # type: ignore[misc]
                for found, engine in sections.built_engines(library, engines, (MAIN_BATCH,))
                if found == model
            ]
    makers.append(lambda: TorchBackend(loaded, "cuda"))
    for make in makers:
        data["entries"].append(_run(make, items, folder, rounds))
        save()
    paths = [os.path.join(items, name) for name in sorted(os.listdir(items))[:96]]
    with tempfile.TemporaryDirectory(dir=folder) as out:
        _usual_loop(torch, loaded, paths[:MAIN_BATCH], out)
        seconds = [_usual_loop(torch, loaded, paths, out) for _ in range(rounds)]
    rates = [len(paths) / second for second in seconds]
    data["usual_loop"] = {"items": len(paths), "batch": MAIN_BATCH, "images_per_s": measure.spread(rates)}


def _run(make: Callable[[], Backend], items: str, folder: str, rounds: int) -> Data:
    from unet_batch.inference.segmenter import Segmenter
    from unet_batch.run.execute import execute
    from unet_batch.run.options import RunOptions
    from unet_batch.run.plan import prepare

    with tempfile.TemporaryDirectory(dir=folder) as out, Segmenter(make()) as segmenter:

        def once() -> Any:
            plan = prepare(RunOptions((items,), out, overwrite=True))
            return execute(plan, segmenter)

        once()  # loads kernels, fills the page cache
        reports = sorted((once() for _ in range(rounds)), key=lambda report: report.seconds)
        middle = reports[len(reports) // 2]
        if any(report.failed for report in reports):
            raise BackendError(f"{middle.failed} pictures failed: {middle.failures[:1]}")
        return {
            "backend": segmenter.backend.name,
            "precision": segmenter.backend.precision,
            "batch": segmenter.backend.batch_size,
            "workers": segmenter.workers,
            "images_per_s": measure.spread([report.images_per_second for report in reports]),
            "seconds": statistics.median(report.seconds for report in reports),
            "bottleneck": middle.bottleneck,
            "stages": [dataclasses.asdict(stage) for stage in middle.stages],
            "notes": list(segmenter.backend.notes),
        }


def _usual_loop(torch: Any, loaded: Checkpoint, paths: Sequence[str], out: str) -> float:
    """Seconds of decoding, one batch on the GPU and writing in turn, in one thread."""
    import cv2
    import numpy as np

    from scripts import carvana

    height, width = loaded.spec.input_size
    model = _usual_model(torch, loaded)
    begun = time.perf_counter()
    with torch.inference_mode():
        for start in range(0, len(paths), MAIN_BATCH):
            part = paths[start : start + MAIN_BATCH]
            photos = [carvana.read_rgb(path) for path in part]
            small = np.stack([cv2.resize(photo, (width, height)) for photo in photos])
            found = model(_usual_input(torch, torch.from_numpy(small).cuda(), loaded)).float()
            answers = found.sigmoid()[:, 0] if found.shape[1] == 1 else found.argmax(1).float()
            for path, photo, answer in zip(part, photos, answers.cpu().numpy(), strict=True):
                full = cv2.resize(answer, (photo.shape[1], photo.shape[0]))
                cv2.imwrite(os.path.join(out, f"{Path(path).stem}.png"), (full > 0.5).astype(np.uint8) * 255)
    return time.perf_counter() - begun


FUNCTIONS: dict[str, Callable[..., None]] = {
    function.__name__: function
    for function in (torch_speed, torch_compiled, out_of_memory_torch, photos, end_to_end)
}
