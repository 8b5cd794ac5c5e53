"""What people write in place of `unet-batch run`: whole programs that read photos and write masks.

    python -m scripts.peer_loops usual NETWORK LIST OUT

Each is written as its tutorials write it, with the same network, and runs in a process of its own for
`scripts.bench_peers`. NETWORK is a checkpoint, an ONNX graph that `build-engine --onnx-only` wrote, or an
engine of OpenVINO; LIST a file of paths. Once the network is loaded a line says so: what comes after it is
measured.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
import zipfile
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np

READY = '{"event": "start"}'
"""The line that is printed when the work begins; `unet-batch run --log-json -` prints one, too."""


def usual(network: str, paths: Sequence[str], out: str, *, compiled: bool = False) -> None:
    """The loop that everyone writes: imread, resize, eager PyTorch, sigmoid, resize, imwrite, one by one."""
    import torch

    from unet_batch.model import checkpoint

    loaded = checkpoint.load(network)
    spec, model = loaded.spec, loaded.model
    height, width = spec.input_size
    mean, std = torch.tensor(spec.mean).view(1, 3, 1, 1), torch.tensor(spec.std).view(1, 3, 1, 1)
    run: Callable[[torch.Tensor], torch.Tensor] = torch.compile(model) if compiled else model
    with torch.no_grad():
        if compiled:  # which takes longer than all that is measured
            run(torch.zeros(1, 3, height, width))
        print(READY, flush=True)
        for path in paths:
            picture = _read(path)
            small = cv2.resize(picture, (width, height))
            x = torch.from_numpy(small).permute(2, 0, 1).unsqueeze(0).contiguous().float() / 255
            probability = torch.sigmoid(run((x - mean) / std))[0, 0].numpy()
            _write(out, path, probability, 0.5, picture)


def torch_compile(network: str, paths: Sequence[str], out: str) -> None:
    """The same loop, with `torch.compile` around the network."""
    usual(network, paths, out, compiled=True)


def onnxruntime(network: str, paths: Sequence[str], out: str) -> None:
    """ONNX Runtime with all its defaults, OpenCV around it, one photo at a time."""
    runtime: Any = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(network, providers=["CPUExecutionProvider"])
    [given], [answer] = session.get_inputs(), session.get_outputs()
    height, width = _size(network)
    print(READY, flush=True)
    for path in paths:
        picture = _read(path)
        small = cv2.resize(picture, (width, height))
        found = session.run([answer.name], {given.name: small[None]})[0][0]
        _write(out, path, found, 127, picture)


def openvino(network: str, paths: Sequence[str], out: str) -> None:
    """OpenVINO as its guides make it quick: AsyncInferQueue for throughput, threads for the files."""
    library: Any = importlib.import_module("openvino")
    core = library.Core()
    if network.endswith(".onnx"):
        model, precision, size = core.read_model(network), "f32", _size(network)
    else:
        model, precision, size = _open_engine(core, network)
    model.reshape([1, *size, 3])
    compiled = core.compile_model(
        model, "CPU", {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": precision}
    )
    queue = library.AsyncInferQueue(compiled)
    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as readers, ThreadPoolExecutor(workers) as writers:
        writing: list[Any] = []

        def done(request: Any, given: tuple[str, np.ndarray]) -> None:
            found = request.get_output_tensor(0).data[0].copy()
            writing.append(writers.submit(_write, out, given[0], found, 127, given[1]))

        queue.set_callback(done)
        print(READY, flush=True)
        waiting = iter(paths)
        pictures = deque((each, readers.submit(_read, each)) for each in islice(waiting, 4 * workers))
        while pictures:
            path, reading = pictures.popleft()
            picture = reading.result()
            pictures.extend((each, readers.submit(_read, each)) for each in islice(waiting, 1))
            small = cv2.resize(picture, (size[1], size[0]))
            queue.start_async({0: small[None]}, (path, picture))
        queue.wait_all()
        for task in writing:
            task.result()


def rembg(network: str, paths: Sequence[str], out: str) -> None:
    """rembg with a model of the user's, masks only."""
    library: Any = importlib.import_module("rembg")
    session = library.new_session("u2net_custom", model_path=network)
    print(READY, flush=True)
    for path in paths:
        mask = library.remove(Path(path).read_bytes(), session=session, only_mask=True)
        Path(out, Path(path).stem + ".png").write_bytes(mask)


LOOPS: dict[str, Callable[[str, Sequence[str], str], None]] = {
    "usual": usual,
    "torch-compile": torch_compile,
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "rembg": rembg,
}


def _read(path: str) -> np.ndarray:
    picture = cv2.imread(path, cv2.IMREAD_COLOR)
    if picture is None:
        raise SystemExit(f"{path} cannot be read")
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def _write(out: str, path: str, found: np.ndarray, threshold: float, picture: np.ndarray) -> None:
    """The mask, from the map enlarged to the photo's size."""
    height, width = picture.shape[:2]
    full = cv2.resize(found, (width, height))
    cv2.imwrite(os.path.join(out, Path(path).stem + ".png"), (full > threshold).astype(np.uint8) * 255)


def _size(graph: str) -> tuple[int, int]:
    from unet_batch.engine import onnx_model

    found = onnx_model.read(graph)
    return found.size or found.spec.input_size


def _open_engine(core: Any, plan: str) -> tuple[Any, str, tuple[int, int]]:
    """The network in an engine of ours: an archive with OpenVINO's own two files."""
    from unet_batch.engine import store

    recipe = store.load(plan).sidecar.recipe
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(plan) as archive:
            archive.extractall(folder)
        model = core.read_model(os.path.join(folder, "model.xml"))
    precision = "bf16" if recipe.precision == "bf16" else "f32"
    return model, precision, recipe.profile.size[1]


if __name__ == "__main__":
    name, network, listed, out = sys.argv[1:]
    LOOPS[name](network, Path(listed).read_text(encoding="utf-8").splitlines(), out)
