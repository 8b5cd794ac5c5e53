"""What the doctor prints, on pretended machines; one test asks this one."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from click.testing import CliRunner, Result

from tests.helpers.command import doctor_of_this_machine
from unet_batch.cli import main
from unet_batch.cli import screen as screens
from unet_batch.doctor import checks as doctor
from unet_batch.doctor.checks import Check

TORCH = "pip install --force-reinstall torch -i https://download.pytorch.org/whl/cu130"
CHECKS = (
    Check("machine", "CPU", "ok", "2 of 2 cores; bf16: this CPU executes it natively, non-stop and more"),
    Check("inference", "tensorrt", "missing", "not installed", 'pip install "unet-batch[tensorrt]"'),
    Check("inference", "torch-cuda", "broken", "2.13.0+cpu: built without CUDA", TORCH),
    Check("inference", "torch-cpu", "ok", "2.13.0+cpu, bf16"),
    Check("inference", "auto", "ok", "torch-cpu bf16"),
    Check("building engines", "tensorrt", "missing", "not installed", 'pip install "unet-batch[tensorrt]"'),
    Check("building engines", "tensorrt-rtx", "off", "not installed", 'pip install "unet-batch[tensorrt]"'),
    Check("buffers", "pycuda", "missing", "not installed", 'pip install "unet-batch[tensorrt]"'),
    Check("pictures", "rawpy", "off", "not installed", 'pip install "unet-batch[raw]"'),
    Check("pictures", "Pillow", "broken", "13.0.0: \x1b[31mevil"),
)


def invoke(monkeypatch: pytest.MonkeyPatch, checks: tuple[Check, ...], *arguments: str) -> Result:
    monkeypatch.setattr(doctor, "examine", lambda: checks)
    return CliRunner().invoke(main, ["doctor", *arguments])


def test_loads_nothing_heavy_for_its_help() -> None:
    code = (
        "import sys\nfrom unet_batch.cli import main\n"
        "try: main(['doctor', '--help'])\nexcept SystemExit as e: assert not e.code, e.code\n"
        "print('LOADED', sorted({'torch', 'numpy', 'PIL', 'rich', 'unet_batch.doctor'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "LOADED []"


def test_a_line_for_each_check_in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    result = invoke(monkeypatch, CHECKS)
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert lines[:5] == [
        "machine",
        f"  ok       CPU           {CHECKS[0].detail}",
        "",
        "inference",
        "  missing  tensorrt      not installed",
    ]
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", result.output), (
        "colours, or what a library put into its version"
    )
    assert "`unet-batch run` will use torch-cpu bf16." in lines
    assert lines[-1] == "Fastest on this machine would be tensorrt: see above what it takes."


def test_each_fix_once(monkeypatch: pytest.MonkeyPatch) -> None:
    text = invoke(monkeypatch, CHECKS).output
    assert (
        '\nto fix\n  # tensorrt, tensorrt-rtx, pycuda\n  pip install "unet-batch[tensorrt]"\n  # '
        "torch-cuda\n  " + TORCH + "\n\n" in text
    )
    assert '\noptional\n  # rawpy\n  pip install "unet-batch[raw]"\n\n' in text


def test_words_stay_whole_on_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    def narrow(*, stderr: bool = False) -> object:
        from rich.console import Console

        return Console(
            stderr=stderr,
            highlight=False,
            markup=False,
            soft_wrap=True,
            force_terminal=True,
            width=80,
            color_system=None,
        )

    monkeypatch.setattr(screens, "console", narrow)
    text = invoke(monkeypatch, CHECKS).output
    assert max(map(len, text.splitlines())) <= 80
    assert "natively,\n" + " " * 25 + "non-stop and more\n" in text


def test_nothing_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = (*CHECKS[:3], Check("inference", "auto", "broken", "OSError: libtorch.so"))
    result = invoke(monkeypatch, checks)
    assert result.exit_code == 1
    assert result.output.splitlines()[-1] == "`unet-batch run` cannot work here: OSError: libtorch.so"
    result = invoke(monkeypatch, checks, "--json")
    assert result.exit_code == 1
    assert json.loads(result.output)["works"] is False


@pytest.mark.slow
def test_json_of_this_machine() -> None:
    done = doctor_of_this_machine()
    report = json.loads(done.stdout)
    assert (done.returncode, done.stderr, report["works"]) == (0, "", True)
    assert report["run"]
    assert {"group", "name", "status", "detail", "fix"} == set(report["checks"][0])
