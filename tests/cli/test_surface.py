"""Commands and options that people and scripts rely on: those of `surface.json` stay, with the same meaning.

A new option is added to the list: `python -m tests.cli.test_surface > surface.json` writes it as it is now.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import pytest

from unet_batch.cli import main

STORED: dict[str, dict[str, dict[str, Any]]] = json.loads(
    (Path(__file__).parent / "surface.json").read_text(encoding="ascii")
)


def surface() -> dict[str, dict[str, dict[str, Any]]]:
    """Each command's parameters by name, with all that decides what a command line means."""
    return {name: parameters(command) for name, command in sorted(main.commands.items())}


def parameters(command: click.Command) -> dict[str, dict[str, Any]]:
    context = click.Context(command, info_name=command.name)
    found = {}
    for parameter in command.params:
        info = parameter.to_info_dict()
        entry = {key: info.get(key) for key in ("opts", "secondary_opts", "required", "nargs", "multiple")}
        entry |= {key: info.get(key) for key in ("is_flag", "count", "envvar")}
        entry["default"] = parameter.get_default(context, call=False)
        entry["type"] = kind(info["type"])
        plain = json.loads(json.dumps(entry, default=lambda value: None))
        # Only what is: `nargs` 1 and what is not set say nothing.
        found[str(parameter.name)] = {
            key: value
            for key, value in plain.items()
            if value is not None and value is not False and value != [] and (key, value) != ("nargs", 1)
        }
    return found


def kind(info: Mapping[str, Any]) -> dict[str, Any]:
    """What values are taken: choices, a range of numbers, or any text."""
    facts = {key: info[key] for key in ("choices", "min", "max", "min_open", "max_open") if key in info}
    name = str(info["name"])
    return {
        "name": name if name in ("choice", "boolean") or "integer" in name or "float" in name else "text",
        **facts,
    }


@pytest.mark.parametrize("command", sorted(STORED))
def test_nothing_is_gone_or_means_something_else(command: str) -> None:
    now = surface().get(command, {})
    for name, entry in STORED[command].items():
        assert now.get(name) == entry, f"{command}: {name}"


def test_what_is_new_is_listed() -> None:
    assert {name: list(found) for name, found in surface().items()}.keys() == STORED.keys()
    for command, found in surface().items():
        assert sorted(found) == sorted(STORED[command]), command


def as_text(found: Mapping[str, Mapping[str, Any]]) -> str:
    """A line for each parameter, so that a change of one is a line in a diff."""
    commands = (
        f'"{command}": {{\n '
        + ",\n ".join(f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in parameters.items())
        + "\n}"
        for command, parameters in found.items()
    )
    return "{\n" + ",\n".join(commands) + "\n}\n"


if __name__ == "__main__":
    sys.stdout.write(as_text(surface()))
