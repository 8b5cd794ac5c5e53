"""`unet-batch import-weights`."""

from __future__ import annotations

import math
import shlex
from typing import TYPE_CHECKING, Any

import click

from unet_batch.cli.command import Command, Parsed, complete_path, option
from unet_batch.cli.options import SIZE, Size

if TYPE_CHECKING:
    from unet_batch.cli.screen import Lines
    from unet_batch.model.importer import Imported


def parse_names(text: str) -> tuple[str, ...]:
    """`background,car` -> ("background", "car").

    Raises:
        ValueError: a name is empty.
    """
    names = tuple(part.strip() for part in text.split(","))
    if not all(names):
        raise ValueError(f"{text!r} names an empty class, expected for example background,car")
    return names


def parse_channels(text: str) -> tuple[float, ...]:
    """`0.5,0.5,0.5` -> (0.5, 0.5, 0.5).

    Raises:
        ValueError: these are not three numbers.
    """
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != 3 or not all(map(math.isfinite, numbers)):
        raise ValueError(
            f"{text!r}: one number for each of red, green and blue, for example 0.485,0.456,0.406"
        )
    return numbers


def parse_deviations(text: str) -> tuple[float, ...]:
    """As `parse_channels`, each above 0."""
    numbers = parse_channels(text)
    if min(numbers) <= 0:
        raise ValueError(f"{text!r}: deviations are above 0")
    return numbers


@click.command("import-weights", cls=Command, short_help="Make a checkpoint of a public U-Net's weights.")
@click.argument("source", metavar="FILE", shell_complete=complete_path)
@option(
    "-o",
    "--output",
    required=True,
    metavar="MODEL.safetensors",
    help="Checkpoint to write; must not exist.",
)
@option(
    "--arch",
    type=click.Choice(("auto", "milesial", "plain")),
    default="auto",
    show_default=True,
    help="Network of the weights: milesial/Pytorch-UNet, or the tutorials' plain one with downs, ups, "
    "bottleneck and final_conv.",
)
@option(
    "--size",
    metavar="HxW",
    type=SIZE,
    help="Height and width of the input in training.  [default: milesial 640x960, plain 160x240]",
)
@option(
    "--classes",
    metavar="NAME,...",
    type=Parsed(parse_names),
    help="Class names of the outputs, background included.  [default: car, or background,car]",
)
@option(
    "--mean",
    metavar="R,G,B",
    type=Parsed(parse_channels),
    help="Mean of the pixels, 0 to 1, by channel.  [default: 0,0,0]",
)
@option(
    "--std",
    metavar="R,G,B",
    type=Parsed(parse_deviations),
    help="Standard deviation of the pixels by channel.  [default: 1,1,1]",
)
@option("--name", default="", help="Name of the model.  [default: the name of FILE]")
@option("--terms", default="", metavar="TEXT", help="Terms under which it may be used, on one line.")
@option("--json", "as_json", is_flag=True, help="Print what was found and verified as JSON on stdout.")
def import_weights(
    source: str,
    output: str,
    arch: str,
    size: Size | None,
    classes: tuple[str, ...] | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    name: str,
    terms: str,
    as_json: bool,
) -> None:
    """Make a checkpoint of the weights of a public U-Net, and verify that it computes the same.

    \b
    Examples:
      unet-batch import-weights unet_carvana.pth -o cars.safetensors
      unet-batch import-weights unet.pth -o cars.safetensors --size 1280x1920
      unet-batch import-weights roads.pth -o roads.safetensors --classes none,road

    FILE is a state dict (.pth or .safetensors) of milesial/Pytorch-UNet or of the tutorials' U-Net, both with
    transposed convolutions. Only tensors are read: a file that needs Python code is refused. The checkpoint
    is written only if its logits are those of the original network.

    Weights may lie in dictionaries and under prefixes, beside an optimizer, and averaged: of a model and its
    average (EMA, SWA) the average is taken. Of two outputs, background and one class, the checkpoint gives
    the probability of that class.
    """
    from unet_batch.cli.screen import Lines, print_json
    from unet_batch.model import importer

    found = importer.import_weights(
        source,
        output,
        arch=arch,
        size=size,
        classes=classes or (),
        mean=mean or (),
        std=std or (),
        name=name,
        terms=terms,
    )
    if as_json:
        print_json(_as_dict(found))
    _print_import(Lines(quiet=False, to_stderr=as_json), found)


def _as_dict(found: Imported) -> dict[str, Any]:
    spec = found.spec
    return {
        "path": found.path,
        "name": spec.name,
        "arch": found.arch,
        "widths": list(spec.widths),
        "input_size": list(spec.input_size),
        "classes": list(spec.classes.names),
        "output": spec.output,
        "mean": list(spec.mean),
        "std": list(spec.std),
        "terms": spec.terms,
        "biases_folded": found.folded,
        "background": found.background,
        "notes": list(found.notes),
        "assumed": list(found.assumed),
        "difference": found.difference,
        "stored_difference": found.stored_difference,
    }


def _print_import(lines: Lines, found: Imported) -> None:
    from unet_batch.cli.text import shown

    spec = found.spec
    names, (height, width) = spec.classes.names, spec.input_size
    lines.line("found", f"{found.arch}: {spec.network}", f"{height}x{width}")
    if len(names) == 1:
        lines.line("classes", names[0], "the map holds the probability of it")
    else:
        lines.line(
            "classes", ", ".join(names), f"the map holds ids 0 to {len(names) - 1}, of the largest output"
        )
    if spec.terms:
        lines.line("terms", spec.terms)
    lines.line("pixels", f"0 to 1, mean {_numbers(spec.mean)}, std {_numbers(spec.std)}")
    for note in found.notes:
        lines.line("note", note)
    if found.background:
        lines.line(
            "note",
            f"{found.background} and {names[0]} had an output each: one probability says the same",
        )
    elif len(names) == 2:
        example = f"--classes background,{names[1]}"
        lines.line(
            "note", f"two classes and no background: where one is the rest of the picture, say so: {example}"
        )
    if found.folded:
        lines.line("note", "biases of convolutions went into the BatchNorm after them")
    if found.assumed:
        options = ", ".join(f"--{field}" for field in found.assumed)
        lines.line("note", f"the weights do not say, so this is assumed, and can be given: {options}")
    lines.line(
        "proven",
        f"logits differ from the original's by {found.difference:.1e} of the largest in float32",
        f"by {found.stored_difference:.1e} as stored in float16",
    )
    path = shown(found.path)
    lines.line("written", path)
    lines.line("next", f"unet-batch run ./photos -m {shlex.quote(path)}")


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
