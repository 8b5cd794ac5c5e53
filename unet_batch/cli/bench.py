"""`unet-batch bench`."""

from __future__ import annotations

import functools
import json
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from unet_batch.cli.command import Bundle, Command, Option, Parsed, complete_path
from unet_batch.cli.network_options import BACKENDS, complete_model, engines_dir_option
from unet_batch.cli.options import SIZE, Size
from unet_batch.cli.scale_options import devices_of
from unet_batch.errors import OutputError, UsageError
from unet_batch.model.zoo import BUNDLED, DEFAULT

if TYPE_CHECKING:
    from unet_batch.bench.compare import Comparison, Wanted
    from unet_batch.cli.screen import Lines
    from unet_batch.model.checkpoint import ModelFile

# Drawn where no photos are given: large enough that decoding counts, few, as each takes a second to draw.
DRAWN, DRAWN_SIZE = 4, (1280, 1920)
# Of a source of many pictures so many are taken, spread over all of it.
MOST_PHOTOS = 32
# Pictures a second of a device that is simulated: a slower one would be waited for by the hour.
RATES = (0.01, 1_000_000)

_model = functools.partial(Option, section="Model")
_measure = functools.partial(Option, section="Measurement")
_output = functools.partial(Option, section="Output")


@dataclass(frozen=True)
class BenchOptions:
    """What to measure, and where the figures go; see `unet-batch bench --help`."""

    source: str | None
    models: tuple[str, ...]
    backends: tuple[str, ...]
    size: Size | None
    device: str | None
    devices: tuple[str, ...]
    engines_dir: str
    batch_size: int | None
    seconds: float
    rounds: int
    simulate: tuple[float, ...]
    output: str | None
    json_file: str | None
    markdown_file: str | None
    plot_file: str | None

    def model_files(self) -> list[tuple[str, ModelFile]]:
        """Name and file of each model.

        Raises:
            CheckpointError: there is none, or it cannot be read.
        """
        from unet_batch.engine import source
        from unet_batch.model import zoo

        names = list(dict.fromkeys(self.models or (DEFAULT,)))
        return [(_short(name, names), source.identify(zoo.resolve(name))) for name in names]

    def check(self) -> None:
        """Raise UsageError if a simulated device is asked for, and another one as well."""
        others = [("--backend", name) for name in self.backends]
        others += [("--device", self.device)] if self.device is not None else []
        if self.simulate and others:
            option, name = others[0]
            raise UsageError(
                f"--simulate {self.simulate[0]:.10g} contradicts {option} {name}",
                hint="leave one of them out",
            )

    def parsed_devices(self) -> dict[str, tuple[str, ...]]:
        """What each --devices stands for.

        Raises:
            UsageError: it names no devices, or there is no GPU for `auto`.
        """
        found = {text: devices_of(text) for text in self.devices}
        for text, names in found.items():
            if not names:
                raise UsageError(f"--devices {text}: no NVIDIA GPU is here", hint="e.g. --devices cpu:2")
        return found

    def photos(self, folder: str) -> tuple[list[str], str]:
        """Files to segment, and what they are, in words.

        Args:
            folder: where scenes are drawn, if there is no source.

        Raises:
            SourceError: the source does not exist, or holds no pictures.
        """
        from unet_batch.errors import SourceError
        from unet_batch.run.options import RunOptions
        from unet_batch.run.plan import prepare
        from unet_batch.scenes import write_samples

        if self.source is None:
            height, width = DRAWN_SIZE
            drawn = write_samples(os.path.join(folder, "drawn"), DRAWN, DRAWN_SIZE, 5, with_masks=False)
            return drawn, f"{DRAWN} drawn scenes of {height}x{width}"
        plan = prepare(RunOptions((self.source,), os.path.join(folder, "out")))
        found = [item.path for item in plan.items if not item.is_clip]
        if not found:
            raise SourceError(
                f"{self.source}: holds clips only, and bench measures pictures",
                hint="name a folder of photos",
            )
        taken = found[:: -(-len(found) // MOST_PHOTOS)]
        of = f" of {len(found):,}" if len(taken) < len(found) else ""
        return taken, f"{len(taken):,}{of} pictures of {self.source}"


def parse_rate(text: str) -> float:
    """`5000` -> 5000.0.

    Raises:
        ValueError: it is no number, or out of bounds.
    """
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not RATES[0] <= rate <= RATES[1]:
        raise ValueError(f"{text!r}: pictures a second expected, from {RATES[0]:g} to {RATES[1]:,}")
    return rate


def _short(name: str, names: Sequence[str]) -> str:
    """A model's name for a table: the file's, where no other has the same."""
    stem = os.path.splitext(os.path.basename(name))[0]
    stems = [os.path.splitext(os.path.basename(each))[0] for each in names]
    return stem if stems.count(stem) == 1 else name


bench_options = Bundle(
    "options",
    BenchOptions,
    click.Argument(["source"], metavar="[SOURCE]", required=False, shell_complete=complete_path),
    _model(
        ["-m", "--model", "models"],
        metavar="FILE",
        multiple=True,
        shell_complete=complete_model,
        help=f"A checkpoint, a graph (.onnx), or {', '.join(BUNDLED)}; several times to compare.  "
        f"[default: {DEFAULT}]",
    ),
    _model(
        ["--backend", "backends"],
        metavar="NAME",
        type=click.Choice(BACKENDS),
        multiple=True,
        help="Measure this one, which must be able to run; several times to compare.  [default: all that "
        "can]",
    ),
    _model(
        ["--size"],
        metavar="HxW",
        type=SIZE,
        help="Height and width of the network's input.  [default: the model's]",
    ),
    _model(["--device"], metavar="NAME", help="cpu, cuda, cuda:1 or mps.  [default: a GPU if there is one]"),
    _model(
        ["--devices"],
        metavar="WHICH",
        multiple=True,
        help="Measure several processes, too, as `run --devices` starts them: GPUs such as 0,1, auto for all "
        "of them, or cpu:N; several times to compare.",
    ),
    engines_dir_option("Model"),
    _model(
        ["--batch-size"],
        metavar="N",
        type=click.IntRange(1, 4096),
        help="Most pictures in one pass of the network.  [default: fits the device]",
    ),
    _measure(
        ["--seconds"],
        metavar="S",
        type=click.FloatRange(0, 3600, min_open=True),
        default=2.0,
        show_default=True,
        help="How long each level of each backend is measured in a round, about.",
    ),
    _measure(
        ["--rounds"],
        metavar="N",
        type=click.IntRange(1, 1000),
        default=3,
        show_default=True,
        help="How often all take turns: more on a machine with other work.",
    ),
    _measure(
        ["--simulate"],
        metavar="RATE",
        type=Parsed(parse_rate),
        multiple=True,
        help="In place of all backends measure a device that only sleeps, as long as one of RATE pictures a "
        "second takes: what would photos, disk and cores allow beside a GPU that is not here? Several times "
        "to compare.",
    ),
    _output(
        ["-o", "--output"],
        metavar="DIR",
        help="Write the masks to this folder's disk; they are removed again.  [default: the temporary "
        "folder]",
    ),
    _output(
        ["--json", "json_file"], metavar="FILE", help="Write everything as JSON, too; - means stdout, alone."
    ),
    _output(["--markdown", "markdown_file"], metavar="FILE", help="Write the tables as Markdown, too."),
    _output(["--plot", "plot_file"], metavar="FILE.png", help="Draw the bars, too; needs the extra train."),
)


@click.command(
    cls=Command,
    short_help="Measure how fast models and backends are on this machine.",
    epilog="Exit codes: 0 measured, 1 a backend failed on the way, 2 wrong usage or nothing can run, 130 "
    "Ctrl-C, after which what has been measured is printed.",
)
@bench_options
def bench(options: BenchOptions) -> None:
    """Measure how fast models and backends are on this machine, and what limits them.

    \b
    Examples:
      unet-batch bench
      unet-batch bench ./photos -m default -m fast
      unet-batch bench ./photos --backend openvino --backend torch --rounds 5
      unet-batch bench ./photos --devices cpu:2 --devices cpu:4
      unet-batch bench ./photos --simulate 5000 --devices cpu:2
      unet-batch bench --json bench.json --markdown bench.md --plot bench.png

    SOURCE is a folder of your photos; without it scenes are drawn. All backends that can run take turns, each
    in a process of its own: the engine alone, the pipeline from pictures in memory to maps, and `run` itself
    from files to masks. Ratios are to the first one. It says what `auto` takes, and if another was faster.
    """
    from unet_batch.bench import plot
    from unet_batch.bench.compare import Comparison, Wanted
    from unet_batch.bench.measure import matrix_peak
    from unet_batch.cli.screen import Lines

    if options.plot_file is not None:
        plot.require_matplotlib()
    options.check()
    devices = options.parsed_devices()
    if options.output is not None and not os.path.isdir(options.output):
        raise UsageError(f"-o {options.output}: no such folder", hint="name one on the disk to be measured")
    lines = Lines(quiet=False, to_stderr=options.json_file == "-")
    models = options.model_files()
    with _temporary_folder(options.output) as folder:
        with lines.err.status("preparing pictures ..."):
            load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
            photos, what = options.photos(folder)
            comparison = Comparison(options.seconds, what, peak=matrix_peak(), load=load)
        settings = {
            "device": options.device,
            "batch_size": options.batch_size,
            "size": options.size,
            "engines_dir": options.engines_dir,
        }
        rates = tuple(dict.fromkeys(options.simulate))
        wanted = Wanted(models, options.backends, settings, photos, folder, devices, rates)
        _measure_all(lines, wanted, comparison, options)
    _print(lines, comparison, options)
    if comparison.interrupted:
        raise SystemExit(130)
    raise SystemExit(1 if any(entry.error for entry in comparison.entries) else 0)


def _temporary_folder(beside: str | None) -> tempfile.TemporaryDirectory[str]:
    """A folder that is gone after the block."""
    try:
        return tempfile.TemporaryDirectory(prefix="unet-batch-bench-", dir=beside, ignore_cleanup_errors=True)
    except OSError as error:
        where = beside or tempfile.gettempdir()
        raise OutputError(
            f"{where}: masks cannot be written there: {error.strerror}", hint="name another disk with -o"
        ) from error


def _measure_all(lines: Lines, wanted: Wanted, comparison: Comparison, options: BenchOptions) -> None:
    """Measure; a Ctrl-C ends it with what there is."""
    from unet_batch.bench.compare import alternate, opened

    with lines.err.status("") as status:

        def progress(text: str) -> None:
            status.update(f"{text} ...")

        try:
            with opened(wanted, comparison, progress) as subjects:
                alternate(subjects, options.rounds, options.seconds, progress)
        except KeyboardInterrupt:
            comparison.interrupted = True


def _print(lines: Lines, comparison: Comparison, options: BenchOptions) -> None:
    """Show the comparison, and write it to the files that were asked for."""
    from unet_batch.bench import plot, report
    from unet_batch.cli.bench_summary import print_comparison
    from unet_batch.cli.screen import print_json
    from unet_batch.files.atomic import write_atomic

    print_comparison(lines, comparison)
    if options.json_file == "-":
        print_json(report.as_dict(comparison))
    elif options.json_file is not None:
        text = json.dumps(report.as_dict(comparison), indent=2) + "\n"
        write_atomic(options.json_file, text.encode())
    if options.markdown_file is not None:
        write_atomic(options.markdown_file, report.markdown(comparison).encode())
    if options.plot_file is not None and comparison.entries:
        write_atomic(options.plot_file, plot.draw(comparison))
