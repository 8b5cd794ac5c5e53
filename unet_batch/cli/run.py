"""`unet-batch run`, and `unet-batch watch`, which is a run that does not end."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import click

from unet_batch.cli.clips import RunCommand, clip_arguments, clip_options, video_options
from unet_batch.cli.errors import printable, reported
from unet_batch.cli.network import network_options
from unet_batch.errors import OutputError, UsageError
from unet_batch.run.observe import Observer, Stop
from unet_batch.types import KINDS

if TYPE_CHECKING:
    from unet_batch.cli.screen import RunProgress, Screen
    from unet_batch.inference.backends.select import Step
    from unet_batch.inference.segmenter import Segmenter
    from unet_batch.model.checkpoint import CheckpointFile
    from unet_batch.run.execute import Plan, RunOptions
    from unet_batch.run.report import Failure, RunReport
    from unet_batch.types import Item

    Log = Callable[[Mapping[str, Any]], None]


def _kinds(context: click.Context, option: click.Parameter, value: str) -> tuple[str, ...]:
    """`mask,overlay` -> ("mask", "overlay"), each checked, none twice."""
    kinds = tuple(dict.fromkeys(part.strip() for part in value.split(",") if part.strip()))
    wrong = [kind for kind in kinds if kind not in KINDS]
    if wrong or not kinds:
        raise click.BadParameter(
            f"{', '.join(map(repr, wrong)) or 'nothing'} is not one of {', '.join(KINDS)}"
        )
    return kinds


@click.command(
    cls=RunCommand,
    short_help="Segment photos and videos: masks and overlays out.",
    epilog="Exit codes: 0 all done, 1 some failed, 2 wrong usage or nothing could be done, 130 Ctrl-C, 143 "
    "SIGTERM.",
)
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@click.option(
    "-o", "--output", metavar="DIR", help="Output folder.  [default: SOURCE-segmented, beside the source]"
)
@network_options
@click.option(
    "--overlay", is_flag=True, help="Save overlays too: the photo with the mask tinted and outlined."
)
@click.option(
    "--save",
    metavar="KINDS",
    callback=_kinds,
    default="mask",
    show_default=True,
    help="What to save, with commas: " + ", ".join(KINDS) + ".",
)
@click.option(
    "--build", is_flag=True, help="Build the engine first where none fits, as `unet-batch build-engine` does."
)
@click.option(
    "--workers",
    type=click.IntRange(1, 256),
    help="Threads for each of decode, render and write.  [default: the cores]",
)
@click.option("--overwrite", is_flag=True, help="Redo pictures that are done, also those of another model.")
@click.option(
    "--hash",
    "hash_sources",
    is_flag=True,
    help="Record the contents of sources: copied or touched ones are not redone.",
)
@click.option(
    "--isolate",
    is_flag=True,
    help="Decode pictures in processes of their own: a file that crashes its decoder costs itself only.",
)
@click.option(
    "--max-pixels",
    metavar="N",
    type=click.IntRange(1),
    help="Refuse pictures with more pixels.  [default: 200,000,000]",
)
@click.option("--fail-fast", is_flag=True, help="Stop at the first picture that fails.")
@click.option("--max-errors", metavar="N", type=click.IntRange(1), help="Stop once N pictures have failed.")
@click.option("--shard", metavar="I/N", help="Do only part I of N; `slurm` takes both from the job array.")
@click.option("--wait", is_flag=True, help="Wait for another run that writes to the same folder.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and write nothing.")
@click.option("-q", "--quiet", is_flag=True, help="Print failures only.")
@click.option("-v", "--verbose", is_flag=True, help="Print a line for each picture.")
@click.option("--log-json", metavar="FILE", help="Add a line of JSON for each event; - means stdout.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print the report as JSON on stdout, everything else on stderr."
)
@clip_options
@reported
def run(**options: Any) -> None:
    """Segment photos and videos: masks as large as each picture, under the same names, overlays with the clip's own sound.

    SOURCE is a picture, a video, a folder (with all below it), a glob pattern in quotes, @list.txt with one path a line,
    or a camera: webcam:0, rtsp://...

    \b
    Examples:
      unet-batch run ./photos --overlay
      unet-batch run car.jpg -o out --save mask,cutout
      unet-batch run "shoots/**/*.jpg" @more.txt -o out
      unet-batch run clip.mp4 --overlay --start 1:30 --end 2:00
      unet-batch run ./photos --backend tensorrt --build

    The same command again does only what is missing, changed, failed or damaged.
    """
    from unet_batch.run.execute import execute, prepare, recipe_of, resume

    screen = _screen(options)
    plan = prepare(_run_options(options))
    screen.sources(plan)
    # Only now: loading torch takes a second or two, and a mistyped path should not have to wait for it.
    with _opened(screen, options) as (file, segmenter, passed):
        if options["dry_run"]:
            plan = resume(plan, recipe_of(segmenter, file.as_dict()))
            screen.todo(plan)
            screen.dry_run(plan)
            return
        with _told(screen, options["log_json"]) as (observer, stop):
            report = execute(plan, segmenter, observer, stop, model=file.as_dict(), passed_over=passed)
    screen.summary(report)
    if options["as_json"]:
        _print_json(report)
    raise SystemExit(report.exit_code)


@click.command(
    cls=RunCommand,
    short_help="Segment files as they arrive in a folder, until stopped.",
    params=[parameter for parameter in run.params if parameter.name not in ("dry_run", "as_json", "shard")],
    epilog="Exit codes: 0 nothing failed, 1 some failed, 2 wrong usage or nothing could be done. Ctrl-C "
    "ends it well.",
)
@click.option(
    "--settle",
    metavar="SECONDS",
    type=click.FloatRange(0, 86400),
    default=3.0,
    show_default=True,
    help="Take a file once its size and time have been the same for so long.",
)
@clip_arguments
@reported
def watch(settle: float, **options: Any) -> None:
    """Segment the files of a folder, and go on as more arrive: with the manifest, the names and the guarantees of `run`.

    SOURCE is a folder, looked through with all below it about once a second. A file is taken when it has not changed for a
    while, so that nothing half copied is read. Ctrl-C finishes what has begun.

    \b
    Example:
      unet-batch watch ./incoming -o masks --overlay
    """
    from unet_batch.run.watch import watch as watch_folders

    screen = _screen(options)
    own = _run_options(options)
    with _opened(screen, options) as (file, segmenter, passed):
        screen.line("watching", *own.sources)
        with _told(screen, options["log_json"], batches=True) as (observer, stop):
            found = watch_folders(
                own, segmenter, observer, stop, settle, model=file.as_dict(), passed_over=passed
            )
    screen.line(
        "stopped", f"{found.done:,} done", f"{found.failed:,} failed" if found.failed else "nothing failed"
    )
    raise SystemExit(1 if found.failed else 0)


def _screen(options: dict[str, Any]) -> Screen:
    """Where to speak; stdout belongs to JSON where that was asked for."""
    from unet_batch.cli.screen import Screen

    as_json, log_json = options.get("as_json", False), options["log_json"]
    if as_json and log_json == "-":
        raise UsageError("--json and --log-json - both want stdout", hint="give --log-json a file")
    return Screen(quiet=options["quiet"], verbose=options["verbose"], to_stderr=as_json or log_json == "-")


def _run_options(options: dict[str, Any]) -> RunOptions:
    from unet_batch.run.execute import RunOptions
    from unet_batch.run.shard import Shard

    save, shard = options["save"], options.get("shard")
    return RunOptions(
        options["sources"],
        options["output"],
        (*save, "overlay") if options["overlay"] and "overlay" not in save else save,
        overwrite=options["overwrite"],
        fail_fast=options["fail_fast"],
        max_errors=options["max_errors"],
        shard=Shard.parse(shard, os.environ) if shard is not None else None,
        wait=options["wait"],
        hash_sources=options["hash_sources"],
        isolate=options["isolate"],
        video=video_options(options["clip_arguments"]),
    )


@contextmanager
def _opened(
    screen: Screen, options: dict[str, Any]
) -> Iterator[tuple[CheckpointFile, Segmenter, Sequence[Step]]]:
    """The model on the best backend, presented on the screen."""
    from unet_batch.inference.backends.select import Request
    from unet_batch.inference.segmenter import open_segmenter
    from unet_batch.media.images import MAX_PIXELS
    from unet_batch.model import checkpoint, zoo

    file = checkpoint.identify(zoo.resolve(options["model"]))
    engines_dir, size, batch_size = options["engines_dir"], options["size"], options["batch_size"]
    builder = _builder(screen, file.path, engines_dir, size, batch_size) if options["build"] else None
    request = Request(
        file,
        options["backend"],
        options["device"],
        batch_size,
        size,
        engines_dir,
        options["require_gpu"],
        builder,
    )
    with open_segmenter(
        request,
        threshold=options["threshold"],
        workers=options["workers"],
        max_pixels=options["max_pixels"] or MAX_PIXELS,
        isolate=options["isolate"],
    ) as segmenter:
        screen.model(file, segmenter, segmenter.passed_over)
        yield file, segmenter, segmenter.passed_over


class _Observers(Observer):
    """Those who hear of a run: the screen, its progress, and the log."""

    def __init__(
        self, screen: Screen, progress: RunProgress, log: Log | None, on_start: Callable[[], None]
    ) -> None:
        self.screen, self.progress, self.log, self.on_start = screen, progress, log, on_start

    def start(self, plan: Plan) -> None:
        self.progress.start(plan)
        self.on_start()

    def wait(self, owner: str) -> None:
        self.screen.line("waiting", f"{owner} is writing to this folder")

    def outcome(self, item: Item, failure: Failure | None) -> None:
        self.progress.advance(item, failure)

    def frame(self, item: Item, done: int, total: int | None) -> None:
        self.progress.frame(item, done, total)

    def batch(self, report: RunReport) -> None:
        self.screen.batch(report)

    def event(self, event: Mapping[str, Any]) -> None:
        if self.log is not None:
            self.log(event)


@contextmanager
def _told(screen: Screen, log_json: str | None, *, batches: bool = False) -> Iterator[tuple[Observer, Stop]]:
    """Those who hear of a run, and what stops it."""
    with ExitStack() as stack:
        log = stack.enter_context(_log(log_json, screen))
        progress = stack.enter_context(screen.progress())
        stop, stopping = Stop(), False
        if batches:  # there is always something to finish
            stack.enter_context(_stopping(stop))
            stopping = True

        def on_start() -> None:
            nonlocal stopping
            if not stopping:
                stack.enter_context(_stopping(stop))  # until now there was nothing to finish
                stopping = True

        yield _Observers(screen, progress, log, on_start), stop


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


@contextmanager
def _stopping(stop: Stop) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM lets the run finish what it has begun; the second ends it now, also without
    half files.
    """

    def on_signal(number: int, frame: object) -> None:
        if stop.reason:
            if os.isatty(2):
                os.write(2, b"\x1b[?25h")  # the cursor that the bar has hidden
            os._exit(128 + number)
        stop(signal.Signals(number).name)
        # Not through a stream: the signal may have struck while this thread was writing to it.
        os.write(2, b"\nstopping  what has begun is finished first; the same signal again quits at once\n")

    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    # What is ignored stays so: a shell starts its background jobs without Ctrl-C.
    before = {
        number: signal.getsignal(number)
        for number in numbers
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        for number in before:
            signal.signal(number, on_signal)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _log(target: str | None, screen: Screen) -> Iterator[Log | None]:
    """What takes the events; one that cannot be written any more does not end the run."""
    if target is None:
        yield None
        return
    try:
        stream = sys.stdout if target == "-" else open(target, "a", encoding="ascii")  # noqa: SIM115 - closed below
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(
            f"{target} cannot be written: {reason}", hint="choose another file for --log-json"
        ) from error
    broken = False

    def write(event: Mapping[str, Any]) -> None:
        nonlocal broken
        if broken:
            return
        try:
            stream.write(json.dumps(event) + "\n")
            stream.flush()
        except OSError as error:
            broken = True
            # What is still buffered must not fail again when the stream is closed.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            screen.warn(f"no more events in {printable(target)}: {error.strerror or error}", "")

    try:
        yield write
    finally:
        if stream is not sys.stdout:
            stream.close()


def _print_json(report: RunReport) -> None:
    json.dump(report.as_dict(), sys.stdout, indent=2)
    sys.stdout.write("\n")
