"""The rules on pretended machines, and this one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable

import pytest

from tests.helpers.command import doctor_of_this_machine
from unet_batch import gpu
from unet_batch.doctor import checks as doctor
from unet_batch.doctor.checks import Check
from unet_batch.doctor.libraries import PACKAGES, Library

Examine = Callable[..., dict[tuple[str, str], Check]]
CPU_TORCH = Library("2.13.0+cpu", "", {"problem": "built without CUDA"})
ABSENT = Library()


def driver(cuda: tuple[int, int], *capabilities: tuple[int, int]) -> gpu.Driver:
    return gpu.Driver(
        cuda, tuple(gpu.Gpu(i, "NVIDIA Card", sm, 24 * 2**30) for i, sm in enumerate(capabilities))
    )


def running(auto: str) -> Library:
    return Library(
        "0.1.0",
        "",
        {"auto": auto, "cpu": "fp32", "why": "fp32: this CPU does not execute bfloat16", "passed": {}},
    )


@pytest.fixture
def examine(monkeypatch: pytest.MonkeyPatch) -> Examine:
    """Examines a pretended machine: its driver, and what differs from a machine on which everything is
    installed.
    """

    def call(driver: gpu.Driver | None, **libraries: Library) -> dict[tuple[str, str], Check]:
        found = dict.fromkeys(PACKAGES, Library("1.2.3"))
        found["torch"] = Library("2.13.0+cu130", "", {"problem": ""})
        found["tensorrt"] = Library("10.13.3")
        found["PIL"] = Library("13.0.0", "", {"PNG": True, "AVIF": True})
        found["unet_batch.inference.segmenter"] = running("torch-cpu fp32")
        names = {
            "segmenter": "unet_batch.inference.segmenter",
            "pycuda": "pycuda.driver",
            "bindings": "cuda.bindings.utils",
        }
        found.update({names.get(name, name): library for name, library in libraries.items()})
        monkeypatch.setattr(doctor, "probe", found.__getitem__)
        monkeypatch.setattr(gpu, "driver", lambda: driver)
        monkeypatch.setattr(gpu, "is_on_pci", lambda: False)
        checks = doctor.examine()
        by_name = {(check.group, check.name): check for check in checks}
        assert len(by_name) == len(checks), "a name stands for one check of its group"
        return by_name

    return call


def faster(checks: dict[tuple[str, str], Check]) -> str | None:
    better = doctor.faster(tuple(checks.values()))
    return None if better is None else better.name


class TestWithoutGpu:
    def test_nothing_is_asked_for(self, examine: Examine) -> None:
        names = "tensorrt", "tensorrt_rtx", "onnx", "onnxscript", "onnxruntime", "pycuda", "bindings"
        absent = dict.fromkeys((*names, "rawpy", "pydicom", "zarr"), ABSENT)
        checks = examine(None, torch=CPU_TORCH, **absent)
        assert {check.status for check in checks.values()} == {"ok", "off"}
        for name in ("tensorrt", "tensorrt-rtx", "torch-cuda"):
            assert checks["inference", name] == Check("inference", name, "off", "no NVIDIA driver")
        assert checks["inference", "torch-cpu"].detail == "2.13.0+cpu, fp32"
        assert checks["inference", "auto"] == Check("inference", "auto", "ok", "torch-cpu fp32")
        assert checks["pictures", "rawpy"].fix == 'pip install "unet-batch[raw]"'
        assert faster(checks) is None

    def test_only_rtx_builds_engines(self, examine: Examine) -> None:
        checks = examine(None)
        assert checks["building engines", "tensorrt"].status == "off"
        assert checks["building engines", "tensorrt"].detail == "no NVIDIA driver; 10.13.3 is installed"
        assert checks["building engines", "tensorrt-rtx"].status == "ok"

    def test_a_gpu_without_a_driver(self, examine: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
        examine(None)
        monkeypatch.setattr(gpu, "is_on_pci", lambda: True)
        check = next(check for check in doctor.examine() if check.group == "GPU")
        assert check.status == "missing"
        assert "--gpus all" in check.fix

    def test_a_hidden_gpu(self, examine: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        checks = examine(gpu.Driver((13, 0), (), "CUDA_ERROR_NO_DEVICE"))
        assert checks["GPU", "driver"].status == "broken"
        assert checks["GPU", "driver"].fix == "CUDA_VISIBLE_DEVICES is '': unset it"
        assert checks["inference", "tensorrt"].status == "off"


class TestCpu:
    """What else runs networks on a CPU, beside PyTorch."""

    def test_openvino_is_advice_with_the_command_that_installs_it(self, examine: Examine) -> None:
        checks = examine(None, openvino=ABSENT)
        for group in ("inference", "building engines"):
            assert checks[group, "openvino"].status == "off"
            assert checks[group, "openvino"].fix == 'pip install "unet-batch[openvino]"'
        assert faster(checks) == "openvino"

    def test_openvino_without_an_engine_names_the_command_that_builds_one(self, examine: Examine) -> None:
        auto = running("torch-cpu fp32")
        auto.facts["passed"] = {"openvino": ("no engine in engines", "unet-batch build-engine ...")}
        checks = examine(None, segmenter=auto)
        assert checks["inference", "openvino"] == Check(
            "inference", "openvino", "off", "1.2.3: no engine in engines", "unet-batch build-engine ..."
        )
        assert faster(checks) == "openvino"

    def test_openvino_with_an_engine_is_what_runs(self, examine: Examine) -> None:
        checks = examine(None, segmenter=running("openvino fp32"))
        assert (checks["inference", "openvino"].status, faster(checks)) == ("ok", None)

    def test_it_is_no_advice_beside_a_gpu(self, examine: Examine) -> None:
        checks = examine(driver((13, 0), (8, 9)), openvino=ABSENT, segmenter=running("torch-cuda fp16"))
        assert checks["inference", "openvino"].status == "off"
        assert faster(checks) is None

    def test_onnx_runtime_runs_graphs(self, examine: Examine) -> None:
        assert examine(None)["inference", "onnxruntime"].detail == "1.2.3: runs graphs (.onnx)"
        check = examine(None, onnxruntime=ABSENT)["inference", "onnxruntime"]
        assert (check.status, check.fix) == ("off", 'pip install "unet-batch[onnx]"')

    def test_building_for_a_cpu_needs_onnx(self, examine: Examine) -> None:
        check = examine(None, onnx=ABSENT)["building engines", "openvino"]
        assert (check.status, check.detail) == ("off", "needs onnx")


class TestWithGpu:
    def test_everything(self, examine: Examine) -> None:
        checks = examine(driver((13, 0), (8, 9), (12, 0)), segmenter=running("tensorrt fp16"))
        assert {check.status for check in checks.values()} == {"ok"}
        assert not any(check.fix for check in checks.values())
        assert checks["GPU", "GPU 1"].detail == "NVIDIA Card, sm_120, 24.0 GiB"
        assert faster(checks) is None

    def test_torch_without_cuda(self, examine: Examine) -> None:
        checks = examine(
            driver((13, 0), (9, 0)), torch=CPU_TORCH, tensorrt=ABSENT, pycuda=ABSENT, bindings=ABSENT
        )
        assert checks["inference", "torch-cuda"].status == "broken"
        assert checks["inference", "torch-cuda"].fix.endswith(
            "--force-reinstall torch -i https://download.pytorch.org/whl/cu130"
        )
        assert checks["inference", "torch-cpu"].status == "ok"
        assert checks["inference", "tensorrt"].fix == 'pip install "unet-batch[tensorrt]"'
        assert checks["buffers", "cuda-bindings"].status == "missing"
        assert checks["buffers", "cuda-bindings"].fix == 'pip install "unet-batch[tensorrt]"'
        assert checks["buffers", "pycuda"].status == "off", "it takes a compiler, and nobody needs it"
        assert faster(checks) == "tensorrt"

    def test_tensorrt_needs_buffers(self, examine: Examine) -> None:
        ada = driver((13, 0), (8, 9))
        checks = examine(ada, torch=CPU_TORCH, pycuda=ABSENT, bindings=ABSENT)
        for name in ("tensorrt", "tensorrt-rtx"):
            assert checks["inference", name].status == "missing"
            assert checks["inference", name].fix == f'pip install "unet-batch[{name}]"'
        for absent in ("pycuda", "bindings"):
            checks = examine(ada, torch=CPU_TORCH, **{absent: ABSENT})
            assert checks["inference", "tensorrt"].status == "ok", "one of them is enough"

    def test_who_holds_the_buffers_and_why(self, examine: Examine) -> None:
        ada = driver((13, 0), (8, 9))

        def lines(**libraries: Library) -> list[tuple[str, str]]:
            checks = examine(ada, **libraries)
            return [(check.status, check.detail) for key, check in checks.items() if key[0] == "buffers"]

        torch = "2.13.0+cu130"
        assert lines() == [
            ("ok", "1.2.3: holds the buffers, the first choice"),
            ("ok", "1.2.3: would serve without pycuda"),
            ("ok", f"{torch}: would serve without pycuda"),
        ]
        assert lines(pycuda=ABSENT) == [
            ("off", "not installed; cuda-bindings serves, and needs no compiler"),
            ("ok", "1.2.3: holds the buffers, the first that is there"),
            ("ok", f"{torch}: would serve without cuda-bindings"),
        ]
        assert lines(pycuda=ABSENT, bindings=Library("12.8.0", "ModuleNotFoundError: no utils")) == [
            ("off", "not installed; torch.cuda serves, and needs no compiler"),
            ("broken", "12.8.0: ModuleNotFoundError: no utils"),
            ("ok", f"{torch}: holds the buffers, the first that is there"),
        ]
        assert lines(bindings=ABSENT)[1] == (
            "off",
            "not installed; pycuda serves, but captures no CUDA graphs",
        )
        refused = Library("13.5.0", "", {"problem": "cuda-bindings: CUDA: CUDA_ERROR_NO_DEVICE"})
        assert lines(pycuda=ABSENT, bindings=refused)[1:] == [
            ("broken", "13.5.0: cuda-bindings: CUDA: CUDA_ERROR_NO_DEVICE"),
            ("ok", f"{torch}: holds the buffers, the first that is there"),
        ]

    def test_tensorrt_needs_an_engine(self, examine: Examine) -> None:
        auto = running("torch-cuda fp16")
        auto.facts["passed"] = {
            "tensorrt": ("no engine in engines", "unet-batch build-engine --builder tensorrt")
        }
        checks = examine(driver((13, 0), (8, 9)), segmenter=auto)
        assert checks["inference", "tensorrt"].status == "missing"
        assert checks["inference", "tensorrt"].detail == "10.13.3: no engine in engines"
        assert checks["inference", "tensorrt"].fix == "unet-batch build-engine --builder tensorrt"
        assert checks["inference", "tensorrt-rtx"].status == "ok"
        assert faster(checks) == "tensorrt"
        auto.facts["passed"]["tensorrt-rtx"] = ("no engine in engines", "build")
        assert (
            examine(driver((13, 0), (8, 9)), segmenter=auto)["inference", "tensorrt-rtx"].status == "missing"
        )

    def test_what_is_slower_is_no_advice(self, examine: Examine) -> None:
        checks = examine(driver((13, 0), (8, 9)), torch=CPU_TORCH, segmenter=running("tensorrt fp16"))
        assert checks["inference", "torch-cuda"].status == "broken"
        assert faster(checks) is None

    @pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 6), (8, 9), (12, 0), (12, 1)])
    def test_targets_of_rtx(self, examine: Examine, capability: tuple[int, int]) -> None:
        assert examine(driver((13, 0), capability))["inference", "tensorrt-rtx"].status == "ok"

    def test_builds_need_onnx(self, examine: Examine) -> None:
        checks = examine(driver((13, 0), (8, 9)), onnx=ABSENT)
        for name in ("onnx", "tensorrt", "tensorrt-rtx"):
            assert checks["building engines", name].status == "missing"
            assert checks["building engines", name].fix == 'pip install "unet-batch[onnx]"'
        assert (
            examine(driver((13, 0), (8, 9)), onnxruntime=ABSENT)["building engines", "tensorrt"].status
            == "ok"
        )

    @pytest.mark.parametrize(
        ("cuda", "capability", "wheel"),
        [
            ((13, 1), (9, 0), "cu130"),
            ((12, 9), (12, 0), "cu128"),
            ((12, 7), (9, 0), "cu126"),
            ((12, 0), (9, 0), "cu126"),
            ((13, 0), (7, 0), "cu126"),
        ],
    )
    def test_the_wheel_that_fits_driver_and_gpu(
        self, examine: Examine, cuda: tuple[int, int], capability: tuple[int, int], wheel: str
    ) -> None:
        checks = examine(driver(cuda, (9, 0), capability), torch=ABSENT)
        assert checks["inference", "torch-cuda"].fix.endswith(f"/{wheel}")
        assert checks["inference", "torch-cpu"].fix.endswith(f"/{wheel}")

    def test_a_driver_too_old_for_any_wheel(self, examine: Examine) -> None:
        checks = examine(
            driver((11, 8), (8, 6)), torch=Library("2.13.0+cu126", "", {"problem": "RuntimeError: too old"})
        )
        assert checks["inference", "torch-cuda"].detail == "2.13.0+cu126: RuntimeError: too old"
        assert checks["inference", "torch-cuda"].fix.startswith("update the NVIDIA driver")

    def test_no_advice_to_install_the_same_again(self, examine: Examine) -> None:
        checks = examine(
            driver((13, 0), (8, 6)), torch=Library("2.13.0+cu130", "", {"problem": "RuntimeError: busy"})
        )
        assert (checks["inference", "torch-cuda"].status, checks["inference", "torch-cuda"].fix) == (
            "broken",
            "",
        )

    @pytest.mark.parametrize(
        ("capability", "kind"),
        [((9, 0), "sm_90 (data-centre)"), ((10, 0), "sm_100 (data-centre)"), ((6, 1), "sm_61")],
    )
    def test_rtx_alone_on_a_gpu_that_it_does_not_target(
        self, examine: Examine, capability: tuple[int, int], kind: str
    ) -> None:
        checks = examine(driver((13, 0), capability), tensorrt=ABSENT, segmenter=running("torch-cuda fp16"))
        rtx = checks["inference", "tensorrt-rtx"]
        assert (rtx.status, rtx.fix) == ("broken", "")
        assert rtx.detail == f"1.2.3: it targets RTX GPUs (sm_75 to sm_121), not {kind}"
        assert checks["building engines", "tensorrt-rtx"].status == "ok", "for other machines"
        assert faster(checks) == "tensorrt"

    def test_one_of_two_ways_is_enough(self, examine: Examine) -> None:
        checks = examine(
            driver((13, 0), (8, 9)), tensorrt_rtx=ABSENT, pycuda=ABSENT, segmenter=running("tensorrt fp16")
        )
        assert (checks["inference", "tensorrt-rtx"].status, checks["inference", "tensorrt-rtx"].fix) == (
            "off",
            "",
        )
        check = checks["buffers", "pycuda"]
        assert (check.status, check.fix) == ("off", 'pip install "unet-batch[pycuda]"')
        checks = examine(driver((13, 0), (8, 9)), tensorrt_rtx=ABSENT, tensorrt=ABSENT)
        assert checks["inference", "tensorrt-rtx"].fix == 'pip install "unet-batch[tensorrt-rtx]"'

    @pytest.mark.parametrize(
        ("version", "status"),
        [
            ("8.6.1", "ok"),
            ("10.0.1", "ok"),
            ("11.4.0.1", "ok"),
            ("8.5.3", "broken"),
            ("9.3.0", "broken"),
            ("12.0", "broken"),
        ],
    )
    def test_versions_of_tensorrt(self, examine: Examine, version: str, status: str) -> None:
        check = examine(driver((13, 0), (9, 0)), tensorrt=Library(version))["inference", "tensorrt"]
        assert check.status == status
        if status == "broken":
            assert check.detail == f"{version}: only 8.6, 10, 11 are supported"
            assert check.fix.startswith('pip install "tensorrt<12')


class TestBrokenLibraries:
    def test_is_named_with_its_reason(self, examine: Examine) -> None:
        check = examine(None, onnxscript=Library("0.7.2", "ImportError: no ir"))[
            "building engines", "onnxscript"
        ]
        assert (check.status, check.detail) == ("broken", "0.7.2: ImportError: no ir")
        assert check.fix.startswith('pip install --force-reinstall "onnxscript<1')

    def test_torch(self, examine: Examine) -> None:
        torch = Library("2.13.0", "OSError: libtorch.so")
        checks = examine(None, torch=torch, segmenter=Library("0.1.0", "OSError: libtorch.so"))
        assert checks["inference", "torch-cpu"].status == "broken"
        assert checks["inference", "torch-cpu"].fix.endswith("/whl/cpu")
        assert checks["inference", "auto"] == Check("inference", "auto", "broken", "OSError: libtorch.so")

    def test_pillow_without_a_codec(self, examine: Examine) -> None:
        checks = examine(None, PIL=Library("13.0.0", "", {"PNG": True, "AVIF": False, "WebP": False}))
        assert checks["pictures", "Pillow"].status == "broken"
        assert checks["pictures", "Pillow"].detail == "13.0.0: built without AVIF, WebP"


def test_the_versions_that_this_project_accepts(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["pillow-heif<2,>=1.0; extra == 'heic'", "pillow<14,>=11.3", "onnx<2; extra == 'onnx'"]
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: lines)
    assert [doctor._requirement(name) for name in ("pillow", "onnx", "av")] == [
        "pillow<14,>=11.3",
        "onnx<2",
        "av",
    ]


@pytest.mark.slow
def test_this_machine() -> None:
    report = json.loads(doctor_of_this_machine().stdout)
    checks = tuple(Check(**check) for check in report["checks"])
    assert list(dict.fromkeys(check.group for check in checks)) == [
        "machine", "GPU", "inference", "building engines", "buffers", "pictures", "training",
        "tables, buckets, machines",
    ]  # fmt: skip
    assert all(check.detail and "\n" not in check.detail + check.fix for check in checks)
    assert doctor.chosen(checks).status == "ok", "these tests run where the program does"
    by_name = {(check.group, check.name): check for check in checks}
    backend, precision = doctor.chosen(checks).detail.split()
    assert by_name["inference", backend].status == "ok"
    if backend == "torch-cpu":
        assert by_name["inference", "torch-cpu"].detail.endswith(precision)
    assert by_name["pictures", "simplejpeg"].status == by_name["pictures", "OpenCV"].status == "ok"
    assert by_name["pictures", "tifffile"].status == by_name["pictures", "imagecodecs"].status == "ok"
    assert f"of {os.cpu_count()} cores" in by_name["machine", "CPU"].detail
    assert (by_name["GPU", "driver"].status == "ok") == (not gpu.missing())
