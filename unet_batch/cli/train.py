"""`unet-batch train`."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from unet_batch.cli.datasets import dataset_options, opened, understood
from unet_batch.cli.engine import optional_size
from unet_batch.cli.errors import printable, reported

if TYPE_CHECKING:
    from unet_batch.cli.screen import Lines
    from unet_batch.datasets.check import Report
    from unet_batch.training.loop import Outcome
    from unet_batch.training.plan import Plan
    from unet_batch.training.ranks import Ranks


def _widths(context: click.Context, option: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """`16,32,64` -> (16, 32, 64)."""
    if value is None:
        return None
    try:
        return tuple(int(part) for part in value.split(","))
    except ValueError as error:
        raise click.BadParameter(
            f"{value!r}: numbers with commas expected, such as 32,64,128,256,512"
        ) from error


def _config(context: click.Context, option: click.Parameter, value: str | None) -> None:
    """Make the values of a file the defaults of the options; what the command line says comes first."""
    if value is None:
        return
    from unet_batch.datasets.encoding import load_toml
    from unet_batch.errors import UsageError

    try:
        document = load_toml(value)
    except (OSError, ValueError, UsageError) as error:
        raise click.BadParameter(f"{value}: {getattr(error, 'strerror', None) or error}") from error
    names = sorted(
        p.name for p in context.command.params if p.name and p.name not in ("config", "folder", "help")
    )
    defaults = {}
    for key, entry in document.items():
        name = key.replace("-", "_")
        if name not in names:
            raise click.BadParameter(
                f"{value}: {key!r} is not an option of train; there are {', '.join(names)}"
            )
        if isinstance(entry, list):
            entry = ("x" if name in ("size", "crop") else ",").join(map(str, entry))
        defaults[name] = entry
    context.default_map = defaults


@click.command(
    "train",
    short_help="Train a U-Net on images and masks.",
    epilog="Exit codes: 0 trained, 1 the dataset would spoil the training, 2 wrong usage or failure, 130 "
    "interrupted.",
)
@click.argument("folder", metavar="DATASET")
@click.option("-o", "--output", metavar="FILE", required=True, help="The model to write: MODEL.safetensors.")
@click.option(
    "--config", metavar="FILE", is_eager=True, expose_value=False, callback=_config,
    help="A TOML file of options: epochs = 60. The command line comes first.",
)  # fmt: skip
@dataset_options
@click.option(
    "--train-list", metavar="FILE", help="Names of the images to train on, one a line.  [default: all others]"
)
@click.option(
    "--val-list",
    metavar="FILE",
    help="Names of the images to validate on.  [default: whole groups, by --val-fraction]",
)
@click.option(
    "--val-fraction", type=float, default=0.2, show_default=True, help="Share of the images to validate on."
)
@click.option(
    "--size",
    metavar="HxW",
    callback=optional_size,
    help="Height and width of the network's input.  [default: the images' shape]",
)
@click.option(
    "--crop",
    metavar="HxW",
    callback=optional_size,
    help="Train on windows of the input of this size, as many as cover each image: more steps in the same "
    "time.",
)
@click.option(
    "--widths",
    metavar="N,N,...",
    callback=_widths,
    help="Channels of each level.  [default: 32,64,128,256,512]",
)
@click.option(
    "--epochs", type=click.IntRange(1), default=40, show_default=True, help="Passes over the training images."
)
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    default=16,
    show_default=True,
    help="Images in a step, over all processes.",
)
@click.option("--lr", type=float, default=1e-3, show_default=True, help="Learning rate at its height.")
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of weights, order and augmentation."
)
@click.option("--init", metavar="MODEL", help="A checkpoint to start from, or the name of a bundled model.")
@click.option(
    "--augment", type=click.Choice(("none", "light", "strong", "elastic")), default="light", show_default=True,
    help="Zoom, turns, shifts, colours, blur and noise; elastic is for slides: turned and bent.",
)  # fmt: skip
@click.option(
    "--flip", type=click.Choice(("none", "horizontal", "any")), default="horizontal", show_default=True,
    help="any, also by quarter turns, suits slides and aerial photos.",
)  # fmt: skip
@click.option(
    "--dice", type=click.Choice(("batch", "picture")), default="batch", show_default=True,
    help="Of the loss, over the batch or of each picture: then those with few pixels of a class count as "
         "much as others.",
)  # fmt: skip
@click.option(
    "--class-weights", type=click.Choice(("auto", "none")), default="auto", show_default=True,
    help="auto: of several classes, rare ones count more.",
)  # fmt: skip
@click.option(
    "--keep", type=click.Choice(("best", "last")), default="best", show_default=True,
    help="The weights of which epoch the model holds; best is judged on the validation images.",
)  # fmt: skip
@click.option(
    "--patience",
    type=click.IntRange(0),
    default=0,
    help="Epochs without improvement after which to stop.  [default: never]",
)
@click.option(
    "--weight-decay", type=float, default=0.01, show_default=True, help="Of AdamW, on the convolutions."
)
@click.option("--clip", type=float, default=1.0, show_default=True, help="Longest gradient.")
@click.option("--device", metavar="NAME", help="cpu, cuda, cuda:1 or mps.  [default: a GPU if there is one]")
@click.option(
    "--precision",
    type=click.Choice(("fp32", "bf16", "fp16")),
    help="Of the arithmetic.  [default: what the device does best]",
)
@click.option(
    "--deterministic",
    is_flag=True,
    help="The same weights from the same seed on a GPU too; a CPU does anyhow.",
)
@click.option("--tensorboard", is_flag=True, help="Also write the curves for TensorBoard.")
@click.option(
    "--resume", is_flag=True, help="Go on where an interrupted training stopped; give the same options."
)
@click.option(
    "--overwrite", is_flag=True, help="Begin again, even though there is a model or a training of this name."
)
@click.option(
    "--dry-run", is_flag=True, help="Print the plan, with estimates of memory and time, and write nothing."
)
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@reported
def train(
    folder: str,
    output: str,
    images: str | None,
    masks: str | None,
    coco: str | None,
    group_by: str | None,
    tensorboard: bool,
    resume: bool,
    overwrite: bool,
    dry_run: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Train a U-Net on images and masks.

    DATASET holds images/ and masks/ of the same names (_mask and the like may be added); `unet-batch check-data` says how it is
    understood. Images of one group, such as the photos of one car, stay on one side of the split. A training that was
    interrupted or killed goes on with --resume, and ends with the same weights. On several GPUs:
    torchrun --nproc-per-node 4 -m unet_batch train ...

    \b
    Examples:
      unet-batch train ./cars -o cars.safetensors
      unet-batch train ./cars -o cars.safetensors --init default --epochs 20
      unet-batch train ./slides -o cells.safetensors --size 512x512 --augment elastic --flip any
      unet-batch train ./cars -o cars.safetensors --resume
    """
    from unet_batch.cli.screen import Lines
    from unet_batch.errors import UsageError

    _require_extra()
    from unet_batch.training import report
    from unet_batch.training.plan import Options, make_plan
    from unet_batch.training.ranks import joined

    if resume and overwrite:
        raise UsageError("--resume goes on, --overwrite begins again", hint="give one of them")
    with joined(options["device"]) as ranks:
        lines = Lines(quiet=quiet or not ranks.leads, to_stderr=False)
        dataset = opened(folder, images=images, masks=masks, coco=coco, group_by=group_by)
        plan = make_plan(dataset, output, Options(**options), processes=ranks.count)
        understood(lines, dataset)
        _planned(lines, plan, ranks)
        if dry_run:
            _estimated(lines, plan)
            return
        _refuse_existing(plan, resume=resume, overwrite=overwrite)
        with report.locked(plan, ranks):
            checked = None if resume else _checked(lines, plan, ranks)
            outcome = _trained(lines, plan, ranks, checked, resume=resume, tensorboard=tensorboard)
            if not ranks.leads:
                return
            if outcome.ended == "interrupted":
                click.echo(
                    f"interrupted after {len(outcome.history)} epochs; the same command with --resume goes "
                    f"on",
                    err=True,
                )
                raise SystemExit(130)
            _finished(lines, plan, outcome)


def _require_extra() -> None:
    from importlib.util import find_spec

    from unet_batch.errors import UsageError

    if missing := [name for name in ("kornia", "matplotlib") if find_spec(name) is None]:
        raise UsageError(f"training needs {' and '.join(missing)}", hint='pip install "unet-batch[train]"')


def _planned(lines: Lines, plan: Plan, ranks: Ranks) -> None:
    spec, options = plan.spec, plan.options
    height, width = spec.input_size
    names = spec.classes.names
    for reason in plan.reasons:
        lines.line("", reason)
    lines.line(
        "model",
        f"widths {', '.join(map(str, spec.widths))}",
        f"{plan.weights_bytes / 20 / 1e6:.1f} M parameters",
        f"{height}x{width}",
        names[0] if len(names) == 1 else f"{len(names)} classes",
    )
    lines.line(
        "training",
        f"{options.epochs} epochs of {plan.steps:,} steps, {plan.batch_size} {plan.samples_are} each",
        f"learning rate {plan.lr:g}",
        f"augment {options.augment}, flip {options.flip}",
        f"seed {options.seed}",
    )
    left = plan.samples % plan.batch_size
    if left > plan.batch_size // 2 and plan.steps < 8:
        lines.line(
            "note",
            f"{left} of {plan.samples} {plan.samples_are} wait for the next epoch each time: --batch-size "
            f"fits better?",
        )
    lines.line(
        "device", f"{plan.device} {plan.precision}", f"{ranks.count} processes" if ranks.count > 1 else ""
    )


def _estimated(lines: Lines, plan: Plan) -> None:
    from unet_batch.cli.screen import clock
    from unet_batch.training.loop import seconds_per_step
    from unet_batch.training.samples import OVERSAMPLING, memory_budget

    height, width = plan.spec.input_size
    # Colours, and coverage with how far it is known, or ids
    bytes_each = 5 if len(plan.spec.classes.names) == 1 else 4
    stored = height * width * bytes_each * (OVERSAMPLING**2 * len(plan.train) + len(plan.val))
    activations = plan.batch_size * plan.activation_bytes
    lines.line(
        "memory",
        f"{_gigabytes(plan.weights_bytes + activations)} to train",
        f"weights and their moments {_gigabytes(plan.weights_bytes)}, a batch {_gigabytes(activations)}",
    )
    kept = min(stored, memory_budget())
    lines.line(
        "",
        f"{_gigabytes(stored)} of samples, {kept / stored:.0%} of them kept in memory, the rest is decoded "
        f"again each epoch",
    )
    taken = seconds_per_step(plan)
    # A validation picture costs a third of a training picture: it has no backward pass.
    validation = len(plan.val) * plan.samples / len(plan.train) / plan.batch_size / 3
    epoch = taken * (plan.steps + validation)
    lines.line(
        "time",
        f"about {clock(epoch)} an epoch, {clock(epoch * plan.options.epochs)} in all",
        f"{taken:.2f} s a step, on noise",
    )
    lines.line("dry run", "nothing was written")


def _refuse_existing(plan: Plan, *, resume: bool, overwrite: bool) -> None:
    from unet_batch.cli.screen import shown
    from unet_batch.errors import UsageError

    if resume or overwrite:
        return
    if os.path.exists(os.path.join(plan.folder, "state.safetensors")):
        raise UsageError(
            f"{shown(plan.folder)}: holds a training",
            hint="--resume goes on with it, --overwrite begins again, or choose another -o",
        )
    for path in (plan.output, plan.card):
        if os.path.exists(path):
            raise UsageError(f"{shown(path)}: exists", hint="--overwrite replaces it, or choose another -o")


def _checked(lines: Lines, plan: Plan, ranks: Ranks) -> list[float]:
    """Shares of the classes; exits where the dataset would spoil the training."""
    from dataclasses import replace

    from unet_batch.cli.screen import shown, staged
    from unet_batch.datasets.check import check

    told: list[tuple[bool, list[float]]] = []
    if ranks.leads:
        left_out = (
            plan.dataset.unmatched_images + plan.dataset.unmatched_masks + tuple(plan.dataset.ambiguous)
        )
        if left_out:  # nobody trains on them, so they spoil nothing
            lines.line(
                "note",
                f"{len(left_out):,} files without a partner, or with several, are left out",
                shown(left_out[0]),
            )
        pairs = (*plan.train, *plan.val)
        dataset = replace(plan.dataset, pairs=pairs, unmatched_images=(), unmatched_masks=(), ambiguous={})
        total = len(dataset.pairs)
        with staged(lines) as progress:
            report = check(
                dataset,
                splits={"training": plan.train, "validation": plan.val},
                progress=lambda done: progress(f"checking {total:,} pairs", done / total),
            )
        _found(lines, report)
        empty = report.ok and not _anything(plan)
        if empty:
            names = " or ".join(plan.spec.classes.names)
            click.echo(
                f"error: not one validation mask holds {names}: nothing could be judged by them", err=True
            )
            click.echo(" hint: name other images with --val-list", err=True)
        for finding in report.findings:
            if finding.severity == "warning":
                more = "; ".join(finding.files[:3]) + ("; ..." if len(finding.files) > 3 else "")
                lines.line("warning", f"{finding.kind}: {finding.message}", more)
        if report.ok:
            lines.line("checked", f"{total:,} pairs are fit for training")
        told = [(report.ok and not empty, [share.pixels for share in report.classes])]
    ok, shares = ranks.gather(told)[0]
    if not ok:
        raise SystemExit(1)
    return list(shares)


def _anything(plan: Plan) -> bool:
    """Whether a validation mask holds a class; the first that does answers."""
    lowest = 1 if len(plan.spec.classes.names) == 1 else 0
    return any(bool(((ids >= lowest) & (ids != 255)).any()) for ids in map(plan.dataset.read_mask, plan.val))


def _found(lines: Lines, report: Report) -> None:
    """The errors, whatever `quiet` says."""
    errors = [finding for finding in report.findings if finding.severity == "error"]
    for finding in errors:
        click.echo(f"error: {finding.kind}: {printable(finding.message)}", err=True)
        for case in finding.files[:3]:
            click.echo(f"       {printable(case)}", err=True)
        click.echo(f" hint: {printable(finding.fix)}", err=True)
    if errors:
        click.echo("not trained; `unet-batch check-data` shows every case", err=True)


def _trained(
    lines: Lines, plan: Plan, ranks: Ranks, shares: list[float] | None, *, resume: bool, tensorboard: bool
) -> Outcome:
    from unet_batch.cli.screen import training
    from unet_batch.training.loop import train as run
    from unet_batch.training.report import Curves

    with (
        _until_signalled() as stop,
        training(lines, plan) as (on_step, on_epoch),
        Curves(plan, tensorboard) as curves,
    ):

        def over(history: Sequence[dict[str, Any]]) -> None:
            curves.add(history)
            on_epoch(history)

        return run(
            plan, shares=shares or (), ranks=ranks, resume=resume, on_step=on_step, on_epoch=over, stop=stop
        )


@contextmanager
def _until_signalled() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM end the training after the step that runs, with its state saved; a second Ctrl-C
    ends it at once.
    """
    signalled = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal signalled
        if signalled and number == signal.SIGINT:
            raise KeyboardInterrupt
        signalled = True
        # A signal may come while print is at work
        os.write(2, b"stopping after this step; Ctrl-C again to stop at once\n")

    # Of a lost terminal
    numbers = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield lambda: signalled
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _finished(lines: Lines, plan: Plan, outcome: Outcome) -> None:
    from unet_batch.cli.screen import clock, shown, staged
    from unet_batch.training import report

    with staged(lines) as progress:
        found = report.finish(plan, outcome, progress)
    why = f"no improvement for {plan.options.patience} epochs" if outcome.ended == "no improvement" else ""
    lines.line(
        "trained",
        f"{len(outcome.history)} epochs in {clock(outcome.seconds)}",
        why,
        f"kept epoch {outcome.best}",
    )
    for place, text, over in report.figures(found):
        lines.line("validated", place, text, over)
    for failure in found.failures[:3]:
        lines.warn(failure.message, failure.hint)
    lines.line("written", shown(plan.output), shown(plan.card), shown(plan.folder) + os.sep)
    lines.line(
        "",
        f"{shown(plan.folder)}/val.txt names the images that took no part: unet-batch evaluate DATASET "
        f"--split ...",
    )
    lines.line("next", f"unet-batch run ./photos -m {shown(plan.output)} --overlay")


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.0f} MB"
