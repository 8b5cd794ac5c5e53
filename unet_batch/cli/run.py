"""`unet-batch run`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from unet_batch.cli.engine import engines_dir_option, optional_size
from unet_batch.cli.errors import reported
from unet_batch.types import KINDS

if TYPE_CHECKING:
    from unet_batch.cli.screen import Screen
    from unet_batch.run import RunReport


def _kinds(context: click.Context, option: click.Parameter, value: str) -> tuple[str, ...]:
    """`mask,overlay` -> ("mask", "overlay"), each checked, none twice."""
    kinds = tuple(dict.fromkeys(part.strip() for part in value.split(",") if part.strip()))
    wrong = [kind for kind in kinds if kind not in KINDS]
    if wrong or not kinds:
        raise click.BadParameter(f"{', '.join(map(repr, wrong)) or 'nothing'} is not one of {', '.join(KINDS)}")
    return kinds


@click.command(
    short_help="Segment pictures: photos in, masks and overlays out.",
    epilog="Exit codes: 0 all done, 1 some pictures failed, 2 wrong usage or nothing could be done, 130 interrupted.",
)
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@click.option("-o", "--output", metavar="DIR", help="Output folder.  [default: SOURCE-segmented, beside the source]")
@click.option(
    "-m", "--model", metavar="FILE", help="A checkpoint (.safetensors) or a bundled model.  [default: the bundled one]"
)
@click.option("--overlay", is_flag=True, help="Save overlays too: the photo with the mask tinted and outlined.")
@click.option(
    "--save",
    metavar="KINDS",
    callback=_kinds,
    default="mask",
    show_default=True,
    help="What to save, with commas: " + ", ".join(KINDS) + ".",
)
@click.option("--threshold", type=float, help="Probability from which a pixel counts.  [default: the model's, mostly 0.5]")
@click.option(
    "--backend",
    type=click.Choice(("auto", "tensorrt", "tensorrt-rtx", "torch")),
    default="auto",
    show_default=True,
    help="What runs the network. auto takes the first that can, in this order, and says why; the others never fall back.",
)
@click.option("--device", metavar="NAME", help="cpu, cuda, cuda:1 or mps.  [default: a GPU if there is one]")
@click.option("--require-gpu", is_flag=True, help="Refuse to run on the CPU.")
@engines_dir_option
@click.option("--build", is_flag=True, help="Build the engine first where none fits, as `unet-batch build-engine` does.")
@click.option(
    "--size", metavar="HxW", callback=optional_size, help="Height and width of the network's input.  [default: the model's]"
)
@click.option(
    "--batch-size", type=click.IntRange(1, 4096), help="Most pictures in one pass of the network.  [default: fits the device]"
)
@click.option(
    "--workers", type=click.IntRange(1, 256), help="Threads for each of decode, render and write.  [default: the cores]"
)
@click.option("--overwrite", is_flag=True, help="Redo pictures whose outputs exist; without it they are skipped.")
@click.option("--fail-fast", is_flag=True, help="Stop at the first picture that fails.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and write nothing.")
@click.option("-q", "--quiet", is_flag=True, help="Print failures only.")
@click.option("-v", "--verbose", is_flag=True, help="Print a line for each picture.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON on stdout, everything else on stderr.")
@reported
def run(
    sources: tuple[str, ...],
    output: str | None,
    model: str | None,
    overlay: bool,
    save: tuple[str, ...],
    threshold: float | None,
    backend: str,
    device: str | None,
    require_gpu: bool,
    engines_dir: str,
    build: bool,
    size: tuple[int, int] | None,
    batch_size: int | None,
    workers: int | None,
    overwrite: bool,
    fail_fast: bool,
    dry_run: bool,
    quiet: bool,
    verbose: bool,
    as_json: bool,
) -> None:
    """Segment pictures: masks as large as each picture, under the same names.

    SOURCE is a picture, a folder (with all below it), a glob pattern in quotes, or @list.txt with one path a line.

    \b
    Examples:
      unet-batch run ./photos --overlay
      unet-batch run car.jpg -o out --save mask,cutout
      unet-batch run "shoots/**/*.jpg" @more.txt -o out
      unet-batch run ./photos --backend tensorrt --build
    """
    from unet_batch.cli.screen import Screen
    from unet_batch.run import RunOptions, execute, prepare

    screen = Screen(quiet=quiet, verbose=verbose, to_stderr=as_json)
    kinds = (*save, "overlay") if overlay and "overlay" not in save else save
    plan = prepare(RunOptions(sources, output, kinds, overwrite, fail_fast))
    screen.sources(plan)
    # Only now: loading torch takes a second or two, and a mistyped path should not have to wait for it.
    from unet_batch.backends.select import Request, select
    from unet_batch.model import checkpoint, zoo
    from unet_batch.segmenter import Segmenter

    file = checkpoint.identify(zoo.resolve(model))
    builder = _builder(screen, file.path, engines_dir, size, batch_size) if build else None
    chosen, passed = select(Request(file, backend, device, batch_size, size, engines_dir, require_gpu, builder))
    with Segmenter(chosen, threshold=threshold, workers=workers) as segmenter:
        screen.model(file, segmenter, passed)
        if dry_run:
            screen.dry_run(plan)
            return
        with screen.progress(len(plan.todo)) as advance:
            report = execute(plan, segmenter, file.as_dict(), advance, passed)
    screen.summary(report)
    if as_json:
        _print_json(report)
    raise SystemExit(report.exit_code)


def _builder(
    screen: Screen, path: str, engines_dir: str, size: tuple[int, int] | None, batch_size: int | None
) -> Callable[[str], object]:
    """What `--build` does for a flavour of TensorRT when no engine fits."""

    def build(flavour: str) -> object:
        from unet_batch.build import DEFAULT_BATCH, BuildOptions, build_engine
        from unet_batch.cli.screen import staged

        batch = DEFAULT_BATCH if batch_size is None else (1, batch_size, batch_size)
        sizes = None if size is None else (size, size, size)
        with staged(screen) as progress:
            return build_engine(BuildOptions(path, engines_dir, sizes, batch, builder=flavour), progress)

    return build


def _print_json(report: RunReport) -> None:
    import json

    json.dump(report.as_dict(), sys.stdout, indent=2)
    sys.stdout.write("\n")
