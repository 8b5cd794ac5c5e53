"""The structure stays as it is meant: few flat modules, short modules and functions, tests where the code is.

Each limit is stated once, here. Where one is reached, split by question rather than by length.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FLAT_MODULES = 9
LAYERS = 10
MODULE_LINES = 500
FUNCTION_LINES = 80

PACKAGE = ROOT / "unet_batch"
SCRIPTS = ROOT / "scripts"
TESTS = ROOT / "tests"


def python_files(*folders: Path) -> list[Path]:
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Name and lines of each function, docstring included; not its decorators, which declare options."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


def test_few_modules_lie_flat() -> None:
    flat = [path.name for path in PACKAGE.glob("*.py") if path.stem not in ("__init__", "__main__")]
    assert len(flat) <= FLAT_MODULES, flat


def test_the_import_contract_has_few_layers() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    [layers] = [
        contract["layers"]
        for contract in project["tool"]["importlinter"]["contracts"]
        if contract["type"] == "layers"
    ]
    assert len(layers) <= LAYERS, layers


def test_modules_are_short() -> None:
    lines = {name(path): len(path.read_bytes().splitlines()) for path in python_files(PACKAGE, SCRIPTS)}
    assert not {path: count for path, count in lines.items() if count > MODULE_LINES}


def test_functions_are_short() -> None:
    long = {
        f"{name(path)}: {function}": count
        for path in python_files(PACKAGE, SCRIPTS)
        for function, count in functions(ast.parse(path.read_bytes()))
        if count > FUNCTION_LINES
    }
    assert not long


def test_length_of_a_function_counts_its_docstring_and_not_its_decorators() -> None:
    source = (
        '@one\n@two(\n    3,\n)\ndef four() -> None:\n    """Five."""\n\n\nasync def six() -> None: ...\n'
    )
    assert list(functions(ast.parse(source))) == [("four", 2), ("six", 1)]


def test_a_module_is_called_a_module() -> None:
    found = [
        f"{name(path)}:{number}: {line.strip()}"
        for path in python_files(PACKAGE, SCRIPTS)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(r"\brooms?\b", line, re.IGNORECASE)
    ]
    assert not found, "\n".join(found)


def test_scripts_import_without_changing_the_path() -> None:
    assert not [
        name(path) for path in python_files(SCRIPTS) if "sys.path" in path.read_text(encoding="utf-8")
    ]


def test_tests_lie_where_the_code_does() -> None:
    """A folder of the package has a folder of tests, or in its parent's a test file of its name."""
    missing = []
    for folder in sorted({path.parent.relative_to(PACKAGE) for path in python_files(PACKAGE)}):
        own = list((TESTS / folder).glob("test_*.py"))
        if not own and not list((TESTS / folder.parent).glob(f"test_{folder.name}*.py")):
            missing.append(folder.as_posix())
    assert not missing


def test_test_files_share_by_helpers_only() -> None:
    found = []
    for path in python_files(TESTS):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.ImportFrom):
                modules = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            else:
                continue
            found += [
                f"{name(path)}: {module}" for module in modules if re.search(r"(^|\.)test_\w+$", module)
            ]
    assert not found
