"""The options of every command that runs a network: which model, on what, and how."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from unet_batch.cli.engine import engines_dir_option, optional_size
from unet_batch.model.zoo import BUNDLED

Command = TypeVar("Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "-m",
        "--model",
        metavar="FILE",
        help=f"A checkpoint (.safetensors) or {', '.join(BUNDLED)}.  [default: {BUNDLED[0]}]",
    ),
    click.option(
        "--threshold",
        type=click.FloatRange(0, 1, min_open=True),
        help="Probability from which a pixel counts.  [default: the model's, mostly 0.5]",
    ),
    click.option(
        "--backend",
        type=click.Choice(("auto", "tensorrt", "tensorrt-rtx", "torch")),
        default="auto",
        show_default=True,
        help="What runs the network. auto takes the first that can, in this order, and says why; the others "
        "never fall back.",
    ),
    click.option(
        "--device", metavar="NAME", help="cpu, cuda, cuda:1 or mps.  [default: a GPU if there is one]"
    ),
    click.option("--require-gpu", is_flag=True, help="Refuse to run on the CPU."),
    engines_dir_option,
    click.option(
        "--size",
        metavar="HxW",
        callback=optional_size,
        help="Height and width of the network's input.  [default: the model's]",
    ),
    click.option(
        "--batch-size",
        type=click.IntRange(1, 4096),
        help="Most pictures in one pass of the network.  [default: fits the device]",
    ),
)


def network_options(command: Command) -> Command:
    """Give a command these options."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
