"""How errors reach a person: one line with the numbers, one with the fix, and the exit code."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import click

from unet_batch.cli.text import printable
from unet_batch.errors import UnetBatchError

Command = TypeVar("Command", bound=Callable[..., Any])


def reported(command: Command) -> Command:
    """Turn the errors of `unet_batch` into a message and exit code 2, and Ctrl-C into exit code 130."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except UnetBatchError as error:
            click.echo(f"error: {printable(error.message)}", err=True)
            if error.hint:
                click.echo(f" hint: {printable(error.hint)}", err=True)
            raise SystemExit(2) from error
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            raise SystemExit(130) from None

    return wrapper  # type: ignore[return-value]
