"""`unet-batch run`, and `unet-batch watch`, which is a run that does not end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import click

from unet_batch.cli.command import Command, command_line, option
from unet_batch.cli.mask_options import (
    CleanupOptions,
    MeasuringOptions,
    cleanup_options,
    measuring_options,
)
from unet_batch.cli.network_options import NetworkOptions, network_options
from unet_batch.cli.options import (
    DisplayOptions,
    display_options,
    run_options,
    video_options,
)
from unet_batch.cli.pipe import STANDARD, check_pipe, is_piped, run_pipe
from unet_batch.cli.scale_options import ScaleOptions, scale_options
from unet_batch.cli.text import describe_network, shown, some
from unet_batch.files import naming
from unet_batch.files.sources import check_names

if TYPE_CHECKING:
    from unet_batch.cli.screen import Screen
    from unet_batch.inference.segmenter import Segmenter
    from unet_batch.run.hands import Hands
    from unet_batch.run.options import RunOptions, VideoOptions

_build_option = option(
    "--build",
    section="Model",
    is_flag=True,
    help="Build the engine first where none fits, as build-engine does.",
)
_workers_option = option(
    "--workers",
    section="Scale",
    metavar="N",
    type=click.IntRange(1, 256),
    help="Threads for each of decode, render and write.  [default: the cores]",
)
_max_pixels_option = option(
    "--max-pixels",
    section="Reliability",
    metavar="N",
    type=click.IntRange(1),
    help="Refuse pictures with more pixels.  [default: 200,000,000]",
)
_report_option = option(
    "--report",
    section="Output",
    is_flag=True,
    help="Make a page to look through the results, OUT/report.html, as `report` does.",
)


@click.command(
    cls=Command,
    short_help="Segment photos and videos: masks and overlays out.",
    epilog="Exit codes: 0 all done, 1 some failed, 2 wrong usage or nothing could be done, 130 Ctrl-C, 143 "
    "SIGTERM.",
)
@run_options
@measuring_options
@network_options
@_build_option
@cleanup_options
@video_options
@scale_options
@_workers_option
@_max_pixels_option
@_report_option
@option(
    "--dry-run",
    section="Reliability",
    is_flag=True,
    brief="Say what would be done, and write nothing.",
    help="Say what would be done, and write nothing.",
)
@display_options
def run(
    options: RunOptions,
    tables: MeasuringOptions,
    network: NetworkOptions,
    build: bool,
    cleaning: CleanupOptions,
    video: VideoOptions,
    scale: ScaleOptions,
    workers: int | None,
    max_pixels: int | None,
    report: bool,
    dry_run: bool,
    display: DisplayOptions,
) -> None:
    """Segment photos and videos: masks of each picture's own size, under the same names.

    \b
    Examples:
      unet-batch run ./photos --overlay
      unet-batch run car.jpg -o out --save mask,cutout
      unet-batch run "shoots/**/*.jpg" @more.txt -o out
      unet-batch run clip.mp4 --overlay --start 1:30 --end 2:00
      unet-batch run s3://bucket/photos -o s3://bucket/masks

    SOURCE is a picture, a video, a folder (with all below it), a glob pattern in quotes, @list.txt with one
    path a line, a ZIP or tar archive, an address of these, s3://bucket/photos or https://host/car.jpg, - for
    standard input (run - -o - < car.jpg > mask.png), or a camera: webcam:0, rtsp://... Overlays of clips keep
    the sound.

    Without -o, the results of a folder go to FOLDER-segmented beside it, those of anything else to the folder
    segmented, where all of it lies; in the current folder if that lies there, too.

    The same command again does only what is missing, changed, failed or damaged.
    """
    if piped := is_piped(options):
        check_pipe(options, as_json=display.as_json or display.log_json == STANDARD)
    if report:
        from unet_batch.cli.report import with_report

        options = with_report(options)
    screen = display.screen(to_stderr=piped)
    check_names([name for name in options.sources if name != STANDARD], live=naming.live_name)
    screen.loading(network.model)
    if piped:
        scale.check_pipe()
        with _open_network(
            screen, network, build, cleaning, scale, workers, max_pixels, options, tables
        ) as hands:
            run_pipe(options, hands.call(_itself))
        return
    from unet_batch.cli.observer import RunObserver
    from unet_batch.cli.screen import print_json
    from unet_batch.cli.summary import print_summary
    from unet_batch.run.execute import execute
    from unet_batch.run.plan import prepare, resume

    plan = prepare(replace(options, video=video, command=command_line()))
    screen.sources(plan)
    # Only now: loading torch takes a second or two, and a mistyped path should not have to wait for it.
    with _open_network(
        screen, network, build, cleaning, scale, workers, max_pixels, options, tables
    ) as hands:
        if dry_run:
            plan = resume(plan, hands.recipe(options.pages))
            screen.todo(plan)
            screen.dry_run(plan)
            return
        with RunObserver(screen, display.log_json) as observer:
            done = execute(plan, hands, observer, observer.stop)
    print_summary(screen, done)
    if report and done.status in ("done", "failures"):
        from unet_batch.cli.report import print_report

        print_report(screen, plan.outputs.folder)
    if display.as_json:
        print_json(done.as_dict())
    raise SystemExit(done.exit_code)


def _itself(segmenter: Segmenter) -> Segmenter:
    return segmenter


@click.command(
    cls=Command,
    short_help="Segment files as they arrive in a folder, until stopped.",
    epilog="Exit codes: 0 nothing failed, 1 some failed, 2 wrong usage or nothing could be done. Ctrl-C "
    "ends it well.",
)
@run_options.without("shard")
@option(
    "--settle",
    section="Reliability",
    metavar="SECONDS",
    type=click.FloatRange(0, 86400),
    default=3.0,
    show_default=True,
    help="Take a file once its size and time have been the same for so long.",
)
@measuring_options
@network_options
@_build_option
@cleanup_options
@video_options
@scale_options
@_workers_option
@_max_pixels_option
@_report_option
@display_options.without("as_json")
def watch(
    options: RunOptions,
    settle: float,
    tables: MeasuringOptions,
    network: NetworkOptions,
    build: bool,
    cleaning: CleanupOptions,
    video: VideoOptions,
    scale: ScaleOptions,
    workers: int | None,
    max_pixels: int | None,
    report: bool,
    display: DisplayOptions,
) -> None:
    """Segment the files of a folder, and go on as more arrive.

    \b
    Example:
      unet-batch watch ./incoming -o masks --overlay

    SOURCE is a folder, looked through with all below it about once a second. A file is taken when it has not
    changed for a while, so that nothing half copied is read. Names, manifest and guarantees are those of
    `run`. Ctrl-C finishes what has begun.
    """
    from unet_batch.cli.report import refreshing, with_report

    if report:
        options = with_report(options)
    screen = display.screen()
    check_names(options.sources)
    screen.loading(network.model)
    from unet_batch.cli.observer import RunObserver
    from unet_batch.run.watch import look
    from unet_batch.run.watch import watch as watch_folders

    options = replace(options, video=video)
    plan = look(options)
    screen.output(plan)
    with _open_network(
        screen, network, build, cleaning, scale, workers, max_pixels, options, tables
    ) as hands:
        screen.line("watching", *options.sources)
        with RunObserver(screen, display.log_json) as observer:
            observer.listen()
            refresh = refreshing(screen, plan.outputs.folder) if report else None
            found = watch_folders(options, hands, observer, observer.stop, settle, refresh=refresh)
    errors = shown(found.report.errors_file) if found.report is not None else ""
    screen.line(
        "stopped",
        f"{found.done:,} done",
        f"{found.failed:,} failed: see {errors}" if found.failed else "nothing failed",
    )
    raise SystemExit(1 if found.failed else 0)


@contextmanager
def _open_network(
    screen: Screen,
    network: NetworkOptions,
    build: bool,
    cleaning: CleanupOptions,
    scale: ScaleOptions,
    workers: int | None,
    max_pixels: int | None,
    options: RunOptions,
    tables: MeasuringOptions,
) -> Iterator[Hands]:
    """The model on the best backend, or several as one, presented on the screen."""
    from unet_batch.inference.segmenter import open_segmenter
    from unet_batch.media.images import MAX_PIXELS

    requests = [
        network.request(file, _engine_builder(screen, network, file.path) if build else None)
        for file in network.model_files()
    ]
    open_it = partial(
        open_segmenter,
        threshold=network.threshold,
        workers=workers,
        max_pixels=max_pixels or MAX_PIXELS,
        isolate=options.isolate,
        view=network.view,
        channels=network.channels,
        cleanup=cleaning.cleanup,
        measuring=tables.measuring,
    )
    with scale.open(requests, open_it) as hands:
        screen.model(hands.call(describe_network))
        if names := [device["name"] for device in hands.devices]:
            screen.line("devices", f"{len(names)} process{'es' if len(names) > 1 else ''}", some(names))
        yield hands


def _engine_builder(screen: Screen, network: NetworkOptions, model: str) -> Callable[[str], object]:
    """What `--build` calls with the name of a TensorRT where no engine fits."""

    def build(flavour: str) -> object:
        from unet_batch.build import build_for_run
        from unet_batch.cli.progress import staged

        with staged(screen) as progress:
            return build_for_run(
                model, network.engines_dir, network.size, network.batch_size, flavour, progress
            )

    return build
