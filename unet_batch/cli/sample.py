"""`unet-batch sample`."""

from __future__ import annotations

import click

from unet_batch.cli.command import Command, Parsed, complete_path
from unet_batch.cli.options import Size, parse_size


def parse_photo_size(text: str) -> Size:
    """`640x960` -> (640, 960), within what scenes can be drawn at."""
    return parse_size(text, 64, 8192)


@click.command(cls=Command, short_help="Draw photos of cars with exact masks.")
@click.argument("folder", metavar="DIR", shell_complete=complete_path)
@click.option(
    "--photos",
    type=click.IntRange(0, 1_000_000),
    default=12,
    show_default=True,
    help="How many photos to draw.",
)
@click.option(
    "--size",
    metavar="HxW",
    type=Parsed(parse_photo_size),
    default="640x960",
    show_default=True,
    help="Height and width of each photo.",
)
@click.option(
    "--video",
    metavar="SECONDS",
    type=click.FloatRange(0.1, 3600),
    help="Draw a clip of cars driving past, too, with sound.",
)
@click.option(
    "--rate",
    type=click.FloatRange(1, 120),
    default=25,
    show_default=True,
    help="Frames a second of the clip.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**31 - 1),
    default=0,
    show_default=True,
    help="Another seed draws other scenes.",
)
@click.option("-q", "--quiet", is_flag=True, help="Print nothing.")
def sample(
    folder: str, photos: int, size: tuple[int, int], video: float | None, rate: float, seed: int, quiet: bool
) -> None:
    """Draw photos of cars with exact masks, for a first try without data of your own.

    \b
    Examples:
      unet-batch sample demo
      unet-batch sample demo --photos 20 --size 1280x1920
      unet-batch sample demo --photos 0 --video 12 --size 720x1280

    DIR gets photos/ (JPEG) and masks/ (PNG, 0 and 255), with --video also videos/ (MP4) and video-masks/
    (FFV1). The same seed draws the same scenes; more photos or a longer clip continue them.
    """
    from fractions import Fraction

    from unet_batch.cli.progress import drawing
    from unet_batch.scenes import write_clip, write_samples

    if photos:
        with drawing(photos, quiet=quiet) as progress:
            write_samples(folder, photos, size, seed, progress=progress)
        if not quiet:
            click.echo(
                f"{photos} photos of {size[0]}x{size[1]} in {folder}/photos, their masks in {folder}/masks"
            )
    if video is not None:
        exact = Fraction(rate).limit_denominator(1001)
        with drawing(round(video * exact), quiet=quiet) as progress:
            path = write_clip(folder, video, size, exact, seed, progress)
        if not quiet:
            click.echo(
                f"{video:g} s of {size[0]}x{size[1]} at {rate:g} frames/s in {path}, its masks in "
                f"{folder}/video-masks"
            )
