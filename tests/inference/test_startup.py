"""What is imported: only what the backend and the sources need."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image


def imported(code: str, *arguments: str) -> set[str]:
    """The modules that a fresh process has loaded after `code`."""
    script = f"import sys, json\n{code}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_a_run_over_pictures_loads_no_video_no_onnx_and_no_training(tmp_path: Path) -> None:
    photo, out = tmp_path / "photo.png", tmp_path / "out"
    Image.fromarray(np.zeros((64, 96, 3), np.uint8)).save(photo)
    code = (
        "from click.testing import CliRunner\n"
        "from unet_batch.cli import main\n"
        "done = CliRunner().invoke(main, ['run', sys.argv[1], '-o', sys.argv[2], '--device', 'cpu'])\n"
        "assert done.exit_code == 0, done.output"
    )
    modules = imported(code, str(photo), str(out))
    assert (out / "masks/photo.png").exists()
    assert "torch" in modules
    unwanted = {"av", "onnx", "onnxscript", "tensorrt", "tensorrt_rtx", "pycuda", "kornia", "matplotlib"}
    assert not modules & unwanted
    assert not {name for name in modules if name.startswith(("unet_batch.training", "unet_batch.evaluation"))}
    assert "unet_batch.media.isolation" not in modules
    assert "openvino" not in modules, "there is no engine to load it for"


def test_a_segmenter_does_without_torch_until_its_backend_is_chosen() -> None:
    modules = imported("import unet_batch.inference.segmenter, unet_batch.inference.backends.tensorrt")
    assert not modules & {"torch", "av", "onnx", "pycuda", "tensorrt", "tensorrt_rtx", "rich", "click"}
