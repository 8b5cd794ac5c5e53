"""What the documents say holds for the files beside them."""

from __future__ import annotations

import importlib
import pkgutil
import re

import pytest

import unet_batch
from tests.conftest import ROOT
from unet_batch.version import __version__


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


MODULES = sorted(module.name for module in pkgutil.walk_packages(unet_batch.__path__, "unet_batch."))


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("__main__")])
def test_every_module_imports_and_says_what_it_is(name: str) -> None:
    assert importlib.import_module(name).__doc__


def test_the_readme_begins_with_two_commands_of_one_line() -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```$", read("README.md"), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 2
    assert all(len(block.splitlines()) == 1 for block in blocks)
    assert "unet-batch run" in blocks[0]
    assert "pytest" in blocks[1]


def test_links_in_the_documents_lead_somewhere() -> None:
    for document in (
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "unet_batch/model/weights/default.md",
    ):
        for target in re.findall(r"\]\(([^)#:]+)\)", read(document)):
            assert ((ROOT / document).parent / target).exists() or (ROOT / target).exists(), (
                f"{document}: {target}"
            )


def test_architecture_names_every_room() -> None:
    text = read("ARCHITECTURE.md")
    for path in (ROOT / "unet_batch").iterdir():
        if path.is_dir() and path.name not in ("__pycache__", "model"):
            assert f"`{path.name}/`" in text, path.name
        elif path.suffix == ".py" and not path.name.startswith("__") and path.name != "version.py":
            assert f"`{path.name}`" in text, path.name
    for name in re.findall(r"`((?:model/)?[a-z_]+\.py)`", text):
        assert list((ROOT / "unet_batch").rglob(name)) or (ROOT / name).exists(), name


def test_constraints_pin_all_that_is_declared() -> None:
    pinned = {line.split("==")[0] for line in read("constraints.txt").splitlines() if "==" in line}
    project = read("pyproject.toml")
    declared = set(re.findall(r'^\s+"([a-z][a-z0-9-]*)[><=!]', project, re.MULTILINE))
    missing = declared - pinned - {"hatchling"}
    assert not missing, missing


def test_the_changelog_knows_this_version() -> None:
    assert __version__ in read("CHANGELOG.md") or "## Unreleased" in read("CHANGELOG.md")
