"""`unet-batch labels`."""

from __future__ import annotations

import os

import click

from unet_batch.cli.command import Command, complete_path, option

_FORMATS = ("coco", "yolo", "labelstudio", "cvat", "labelme", "geojson")  # of labels.export.FORMATS


@click.command(
    cls=Command,
    short_help="Write the masks of a run as labels for an annotation tool.",
    epilog="Exit codes: 0 all pictures are labelled, 1 some could not be, 2 nothing was written.",
)
@click.argument("output", metavar="OUT", shell_complete=complete_path)
@click.argument("sources", metavar="[SOURCE]...", nargs=-1, shell_complete=complete_path)
@option("--format", "form", type=click.Choice(_FORMATS), required=True, help="What to write.")
@option("-o", "--output", "where", metavar="FOLDER", help="Where to.  [default: OUT-FORMAT]")
@option(
    "--polygons",
    is_flag=True,
    help="Outlines where the format has masks, too, which are its default: coco, labelstudio, cvat, labelme.",
)
@option(
    "--simplify",
    metavar="PX",
    type=click.FloatRange(0, 1000),
    default=0.0,
    help="Leave out points of outlines, none further from the new one than PX pixels; implies --polygons.",
)
@option("--with-images", is_flag=True, help="Copy the pictures beside their labels: a dataset of its own.")
@option(
    "--image-prefix",
    metavar="TEXT",
    default="/data/local-files/?d=",
    help="What Label Studio finds the pictures by, before their names.  [default: its local files]",
)
@option("--overwrite", is_flag=True, help="Replace the labels that an earlier export wrote there.")
@option("-q", "--quiet", is_flag=True, help="Print failures only.")
def labels(
    output: str,
    sources: tuple[str, ...],
    form: str,
    where: str | None,
    polygons: bool,
    simplify: float,
    with_images: bool,
    image_prefix: str,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Write the masks of a finished run in OUT as labels that an annotation tool imports.

    \b
    Examples:
      unet-batch labels out --format coco
      unet-batch labels out @bad.txt --format cvat --with-images
      unet-batch labels out photos/lot --format labelme --simplify 1.5

    SOURCE chooses pictures as `run` does: files, folders, patterns, lists. What an annotator has corrected
    comes back with `train`.
    """
    from unet_batch.cli.progress import drawing
    from unet_batch.cli.screen import Lines
    from unet_batch.cli.text import plural, shown
    from unet_batch.labels.base import LabelSettings
    from unet_batch.labels.export import export
    from unet_batch.run.finished import FinishedRun

    lines = Lines(quiet=quiet, to_stderr=False)
    settings = LabelSettings(polygons or simplify > 0, simplify, with_images, image_prefix)
    with FinishedRun(output) as run, drawing(run.done, quiet=quiet, what="labels") as progress:
        report = export(
            run,
            form,
            where,
            sources=sources,
            settings=settings,
            overwrite=overwrite,
            workers=os.cpu_count() or 1,
            progress=progress,
        )
    for failure in report.failures:
        lines.warn(failure.message, failure.hint)
    if report.failed > len(report.failures):
        lines.warn(f"{report.failed - len(report.failures):,} more pictures could not be labelled", "")
    if report.missing:
        lines.warn(f"{report.missing:,} of the run's items are not done", "run again: it does what is left")
    if report.unselected:
        count, first = len(report.unselected), report.unselected[0]
        lines.warn(
            f"{count:,} {plural(count, 'name')} took no picture, such as {first}", "see to their spelling"
        )
    if report.others:
        what = f"clips and stacks of pages left out: {report.others:,}"
        lines.line("", f"{what}; their frames and pages are no files that a tool could open")
    lines.line("labels", f"{report.pictures:,} {plural(report.pictures, 'picture')}", shown(report.folder))
    raise SystemExit(1 if report.failed or report.missing or report.unselected else 0)
