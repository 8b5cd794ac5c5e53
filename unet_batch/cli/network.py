"""The options of every command that runs a network: which model, on what, and how."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from unet_batch.model.zoo import BUNDLED

Command = TypeVar("Command", bound=Callable[..., Any])

from unet_batch.cli import options


def network_options(command: Command) -> Command:
    """Give a command these options."""
    params = command.__dict__.setdefault("__click_params__", [])
    params.extend(reversed(options.network_options.options))
    return command
