"""`unet-batch pick`."""

from __future__ import annotations

import os

import click

from unet_batch.cli.command import Command, complete_path, option


@click.command(cls=Command, short_help="Choose pictures of a run that are worth labelling.")
@click.argument("output", metavar="OUT", shell_complete=complete_path)
@option(
    "-n",
    "--count",
    metavar="N",
    type=click.IntRange(1, 5000),
    default=50,
    show_default=True,
    help="How many.",
)
@option("-o", "--output", "where", metavar="FILE", help="The list.  [default: OUT-pick.txt]")
@option("--copy", "copies", metavar="FOLDER", help="Copy the pictures into a folder, too.")
@option("-q", "--quiet", is_flag=True, help="Print errors only.")
def pick(output: str, count: int, where: str | None, copies: str | None, quiet: bool) -> None:
    """Choose pictures of the run in OUT to label next, and write a list of them.

    \b
    Examples:
      unet-batch run photos -o out --save mask,prob
      unet-batch pick out -n 50
      unet-batch labels out @out-pick.txt --format cvat --with-images

    They are those that the network was least sure of, but none like the other: fifty frames of one puzzle
    teach a network as little as one of them.
    """
    from unet_batch.cli.progress import drawing
    from unet_batch.cli.screen import Lines
    from unet_batch.cli.text import plural, shown
    from unet_batch.files import remote
    from unet_batch.review.pick import copy_pictures, write_list
    from unet_batch.review.pick import pick as choose
    from unet_batch.run.finished import FinishedRun

    with FinishedRun(output) as run, drawing(run.done, quiet=quiet, what="looking") as progress:
        picked = choose(run, count, progress)
        default = f"{run.name if remote.is_remote(run.folder) else run.folder}-pick.txt"
    path = os.path.abspath(where or default)
    write_list(path, picked)
    lines = Lines(quiet=quiet, to_stderr=False)
    first, last = picked[0].unsure, picked[-1].unsure
    lines.line(
        "picked", f"{len(picked):,} {plural(len(picked), 'picture')}", f"{first:.1%} to {last:.1%} unsure"
    )
    lines.line("list", shown(path))
    if copies is not None:
        copy_pictures(os.path.abspath(copies), picked)
        lines.line("copies", shown(os.path.abspath(copies)))
