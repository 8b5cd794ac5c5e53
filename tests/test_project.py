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


def sections(text: str) -> dict[str, str]:
    """The text under each heading that is a folder of the package."""
    parts = re.split(r"^### (unet_batch/\S*)$|^## .*$", text, flags=re.MULTILINE)
    return {folder: body for folder, body in zip(parts[1::2], parts[2::2], strict=True) if folder}


def test_architecture_names_every_module() -> None:
    described = {
        folder + name
        for folder, body in sections(read("ARCHITECTURE.md")).items()
        for row in re.findall(r"^\| (`[^|]+) \|", body, re.MULTILINE)
        for name in re.findall(r"`(\w+\.py)`", row)
    }
    there = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "unet_batch").rglob("*.py")
        if path.name not in ("__init__.py", "__main__.py", "version.py")
    }
    assert described == there


def test_architecture_sends_nobody_to_a_file_that_is_not_there() -> None:
    text = read("ARCHITECTURE.md")
    for name in re.findall(r"`([a-z_/]+/(?:[a-z_]+\.py)?)`", text[text.index("## To change X") :]):
        assert (ROOT / name).exists() or (ROOT / "unet_batch" / name).exists(), name


def test_every_package_of_an_extra_is_used_by_the_package() -> None:
    """What nothing imports is not installed; tools for the tests and the documents apart."""
    section = re.search(r"^\[project.optional-dependencies\]\n(.*?)^\[", read("pyproject.toml"), re.M | re.S)
    assert section is not None
    extras = re.findall(r"^([a-z-]+) = \[(.*?)\](?=$|  #)", section[1], re.MULTILINE | re.DOTALL)
    assert {"train", "openvino", "heic"} <= {name for name, _ in extras}
    # `doctor` names all of them
    files = [path for path in (ROOT / "unet_batch").rglob("*.py") if path.parent.name != "doctor"]
    code = "\n".join(path.read_text(encoding="utf-8") for path in files)
    for extra, requirements in extras:
        if extra in ("docs", "test") or not requirements:  # a name that stays for those who ask for it
            continue
        packages = re.findall(r'"([a-z][a-z0-9-]*)[><=!]', requirements)
        assert packages or "unet-batch[" in requirements, extra
        for package in packages:
            # The encoders' are found by the encoder's name, see `find_weights`
            module = package.removesuffix("-pytorch-model").replace("scikit-image", "skimage")
            module = module.replace("-", "[-._]")
            used = re.search(rf"""(import |from |[."']){module}\b""", code)
            assert used, f"the extra {extra} installs {package}, which nothing imports"


def test_constraints_pin_all_that_is_declared() -> None:
    pinned = {line.split("==")[0] for line in read("constraints.txt").splitlines() if "==" in line}
    project = read("pyproject.toml")
    declared = set(re.findall(r'^\s+"([a-z][a-z0-9-]*)[><=!]', project, re.MULTILINE))
    missing = declared - pinned - {"hatchling"}
    assert not missing, missing


def test_the_changelog_begins_with_this_version_and_its_day() -> None:
    headings = re.findall(r"^## (.+)$", read("CHANGELOG.md"), re.MULTILINE)
    newest = next(heading for heading in headings if heading != "Unreleased")
    assert re.fullmatch(re.escape(__version__) + r" - 20\d\d-\d\d-\d\d", newest)
