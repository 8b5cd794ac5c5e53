"""`unet-batch import`."""

from __future__ import annotations

import math
import os
import shlex
from typing import TYPE_CHECKING, Any

import click

from unet_batch.cli.command import Command, Parsed, complete_path, option
from unet_batch.cli.import_weights import parse_names
from unet_batch.cli.options import SIZE

if TYPE_CHECKING:
    from unet_batch.cli.screen import Lines
    from unet_batch.engine.importing.guess import Choice
    from unet_batch.engine.importing.importer import Imported


def parse_numbers(text: str) -> tuple[float, ...]:
    """`0.5,0.5,0.5` -> (0.5, 0.5, 0.5), of any count.

    Raises:
        ValueError: these are no numbers.
    """
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{text!r}: a number for each channel, for example 0.485,0.456,0.406")
    return numbers


@click.command("import", cls=Command, short_help="Make a model of any segmentation network in ONNX.")
@click.argument("source", metavar="FILE.onnx", shell_complete=complete_path)
@option("-o", "--output", required=True, metavar="MODEL.onnx", help="Model to write; must not exist.")
@option(
    "--check",
    metavar="SOURCE",
    multiple=True,
    help="Pictures of yours: a few are drawn with their masks to MODEL.check.jpg, beside those of other "
    "scalings where that was a guess.",
)
@option(
    "--range",
    type=click.Choice(("0..1", "0..255", "-1..1", "imagenet")),
    help="What the network takes pixels as.  [default: what the graph shows, else imagenet]",
)
@option(
    "--mean",
    metavar="R,G,B",
    type=Parsed(parse_numbers),
    help="It takes (pixel - mean) / std, pixels from 0 to 1, or to 255 with --range 0..255.",
)
@option("--std", metavar="R,G,B", type=Parsed(parse_numbers), help="Standard deviation, see --mean.")
@option(
    "--colour",
    type=click.Choice(("rgb", "bgr")),
    help="Order of its colours.  [default: rgb, unless the graph shows bgr]",
)
@option("--layout", type=click.Choice(("nchw", "nhwc")), help="Where the channels of its input are.")
@option("--size", metavar="HxW", type=SIZE, help="Size to use it at, where it takes any.  [default: 512x512]")
@option(
    "--map", metavar="NAME", help="Output to take, of several.  [default: the first of the picture's size]"
)
@option(
    "--channel",
    metavar="N",
    type=click.IntRange(0),
    help="Channel of the output whose probability is wanted.  [default: the second of two, else ids]",
)
@option(
    "--activation",
    type=click.Choice(("sigmoid", "softmax", "none")),
    help="What makes probabilities of its values.  [default: none where it ends in one]",
)
@option(
    "--classes",
    metavar="NAME,...",
    type=Parsed(parse_names),
    help="Class names in the order of its channels or ids, background included.",
)
@option("--name", default="", help="Name of the model.  [default: the name of FILE]")
@option("--terms", default="", metavar="TEXT", help="Terms under which it may be used, on one line.")
@option("--json", "as_json", is_flag=True, help="Print what was found and proven as JSON on stdout.")
def import_graph(source: str, output: str, check: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Make a model of any network in ONNX that takes a picture and gives a map, and prove its masks.

    \b
    Examples:
      unet-batch import u2net.onnx -o mine.onnx --check ./photos
      unet-batch import roads.onnx -o mine.onnx --range 0..1 --classes none,road
      unet-batch import city.onnx -o mine.onnx --size 512x1024 --colour bgr

    What the graph tells is taken from it, and printed with the reason; what it cannot tell, such as the
    scaling of its input, is a guess that is said to be one, and every option overrules one. A file FILE.toml
    beside FILE.onnx may hold the options, too. The model is written only if its masks are those of the
    original network; after that it is used like a checkpoint.
    """
    from unet_batch.cli.screen import Lines, print_json
    from unet_batch.engine.importing import importer
    from unet_batch.engine.importing.settings import Settings

    settings = Settings(**{name: value for name, value in given.items() if value is not None})
    found = importer.import_graph(source, output, settings)
    sheet, remark = "", ""
    if check:
        from unet_batch.engine.importing.check import draw_check

        sheet = f"{os.path.splitext(found.path)[0]}.check.jpg"
        remark = draw_check(found, check, sheet)
    if as_json:
        print_json({**as_dict(found), "sheet": sheet or None})
    _print_import(Lines(quiet=False, to_stderr=as_json), found, sheet, remark)


def as_dict(found: Imported) -> dict[str, Any]:
    """What was found, for JSON."""
    from dataclasses import asdict

    spec = found.model.spec
    return {
        "path": found.path,
        "name": spec.name,
        "input_size": list(spec.input_size),
        "any_size": found.model.size is None,
        "batch": found.model.batch,
        "classes": list(spec.classes.names),
        "output": spec.output,
        "mean": list(spec.mean),
        "std": list(spec.std),
        "opset": found.model.opset,
        "source_sha256": found.model.source_sha256,
        "choices": [asdict(choice) for choice in found.choices],
        "notes": list(found.notes),
        "parity": asdict(found.parity),
    }


def describe_foreign(lines: Lines, path: str) -> dict[str, Any]:
    """Print what is seen of a graph of another program, and the line that imports it; all of it for JSON."""
    from dataclasses import asdict

    from unet_batch.cli.text import megabytes
    from unet_batch.engine.importing.graph import read, shape_text
    from unet_batch.engine.importing.guess import understand
    from unet_batch.engine.importing.importer import with_file
    from unet_batch.engine.importing.settings import Settings

    graph = read(path)
    lines.line("file", path, megabytes(os.path.getsize(path)), "an ONNX graph of another program")
    lines.line("graph", f"opset {graph.opset}", f"{len(graph.proto.graph.node)} operators")
    lines.line("input", graph.input, f"{shape_text(graph.dims)} {graph.dtype}")
    lines.line("outputs", ", ".join(graph.outputs))
    recipe, choices = understand(graph, with_file(path, Settings()))
    print_choices(lines, choices)
    stem = os.path.splitext(path)[0]
    guesses = [f"--{each.option} {shlex.quote(each.value)}" for each in choices if each.is_guess]
    photos = () if recipe.channels != 3 else ("--check ./photos",)
    line = " ".join(
        ["unet-batch import", shlex.quote(path), "-o", shlex.quote(f"{stem}-model.onnx"), *guesses, *photos]
    )
    lines.line("next", line)
    return {
        "path": path,
        "input": {"name": graph.input, "shape": list(graph.dims), "dtype": graph.dtype},
        "outputs": list(graph.outputs),
        "opset": graph.opset,
        "choices": [asdict(choice) for choice in choices],
        "import": line,
    }


def print_choices(lines: Lines, choices: tuple[Choice, ...]) -> None:
    """Print each choice with its reason."""
    for choice in choices:
        label = "values" if choice.option == "activation" else choice.option  # labels have nine letters
        lines.line(label, choice.value, f"{'a guess: ' if choice.is_guess else ''}{choice.reason}")


def _print_import(lines: Lines, found: Imported, sheet: str, remark: str) -> None:
    from unet_batch.cli.text import shown

    spec = found.model.spec
    print_choices(lines, found.choices)
    means = (
        "the probability of it" if spec.output == "probability" else f"ids 0 to {len(spec.classes.names) - 1}"
    )
    lines.line("gives", ", ".join(spec.classes.names), f"the map holds {means}")
    for note in (*found.notes, *([remark] if remark else [])):
        lines.line("note", note)
    lines.line(
        "proven",
        f"Dice {found.parity.dice:.5f} with the masks of the original",
        f"{found.parity.pictures} drawn pictures in ONNX Runtime, float32",
    )
    path = shown(found.path)
    lines.line("written", path)
    if sheet:
        lines.line("check", shown(sheet))
    if spec.in_channels != 3:  # no photo of which could be looked at
        return
    guessed = [f"--{choice.option}" for choice in found.choices if choice.is_guess]
    if guessed and not sheet:
        lines.line("note", f"{', '.join(guessed)}: guesses, which a look at masks settles: --check ./photos")
    lines.line("next", f"unet-batch run ./photos -m {shlex.quote(path)}")
