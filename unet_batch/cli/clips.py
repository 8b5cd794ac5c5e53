"""The options of `run` that concern clips: one decorator, and what they become."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from unet_batch.run.clip import VideoOptions

Command = TypeVar("Command", bound=Callable[..., None])

_OPTIONS = (
    click.Option(
        ["--codec"],
        type=click.Choice(("h264", "h264_nvenc", "h265", "vp9", "ffv1", "prores")),
        default="h264",
        show_default=True,
        help="Of overlays. h264 takes the GPU's encoder where there is one; masks are always FFV1, which is "
        "lossless.",
    ),
    click.Option(
        ["--quality"],
        metavar="N",
        type=int,
        help="Of overlays, in the codec's own measure: 20 is the default of h264.",
    ),
    click.Option(
        ["--start"], metavar="TIME", help="Begin here: 90.5, 1:30 or 0:01:30.5; 2250f counts frames."
    ),
    click.Option(["--end"], metavar="TIME", help="End here, likewise."),
    click.Option(
        ["--every"], metavar="N", type=click.IntRange(1), default=1, help="Take each Nth frame only."
    ),
    click.Option(["--max-frames"], metavar="N", type=click.IntRange(1), help="Stop a clip after N frames."),
    click.Option(
        ["--smooth"],
        metavar="SECONDS",
        type=click.FloatRange(0),
        default=0.0,
        help="Steady masks where the picture stays as it is; 0.2 is a start.",
    ),
    click.Option(
        ["--decode"],
        type=click.Choice(("cpu", "nvdec")),
        default="cpu",
        show_default=True,
        help="What decodes clips.",
    ),
    click.Option(
        ["--drop-frames"],
        is_flag=True,
        help="Of cameras: skip the frames that there is no time for, and count them.",
    ),
)
_NAMES = tuple(option.name or "" for option in _OPTIONS)


class RunCommand(click.Command):
    """A command whose help shows the options of clips under a heading of their own."""

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, those of clips last."""
        own: list[tuple[str, str]] = []
        general: list[tuple[str, str]] = []
        for parameter in self.get_params(context):
            record = parameter.get_help_record(context)
            if record is not None and isinstance(parameter, click.Option):
                (own if parameter.name in _NAMES else general).append(record)
        for heading, records in (("Options", general), ("Options of clips", own)):
            with formatter.section(heading):
                formatter.write_dl(records)


def clip_options(command: Command) -> Command:
    """Give a command these options; it gets them together, as `clip_arguments`."""
    collected = clip_arguments(command)
    params: list[click.Parameter] = collected.__dict__.setdefault("__click_params__", [])
    params.extend(reversed(_OPTIONS))
    return collected


def clip_arguments(command: Command) -> Command:
    """Hand a command that has these options their values together, as `clip_arguments`."""

    @wraps(command)
    def collected(*arguments: Any, **options: Any) -> None:
        own = {name: options.pop(name) for name in _NAMES}
        command(*arguments, **options, clip_arguments=own)

    return collected  # type: ignore[return-value]


def video_options(arguments: dict[str, Any]) -> VideoOptions:
    """What `clip_arguments` mean.

    Raises:
        UsageError: a time cannot be read, or the quality is not one of the codec's.
    """
    from unet_batch.run.clip import Position, VideoOptions

    start, end = (
        None if text is None else Position.parse(text) for text in (arguments["start"], arguments["end"])
    )
    return VideoOptions(
        codec=arguments["codec"],
        quality=arguments["quality"],
        start=start,
        end=end,
        every=arguments["every"],
        max_frames=arguments["max_frames"],
        smooth=arguments["smooth"],
        hardware="cuda" if arguments["decode"] == "nvdec" else None,
        latest=arguments["drop_frames"],
    )
