"""`unet-batch train`."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from unet_batch.cli.command import Command, complete_path, option, print_error, words
from unet_batch.cli.options import DatasetOptions, dataset_options
from unet_batch.cli.signals import HANGUP, INTERRUPTS, finish_first
from unet_batch.cli.text import gigabytes
from unet_batch.cli.train_options import training_options

if TYPE_CHECKING:
    from unet_batch.cli.screen import Lines
    from unet_batch.datasets.check import Finding
    from unet_batch.datasets.dataset import Dataset
    from unet_batch.training.check import PairsCheck
    from unet_batch.training.loop import Outcome
    from unet_batch.training.options import Options
    from unet_batch.training.plan import TrainingPlan
    from unet_batch.training.ranks import Ranks


_SHOWN = 3  # cases of each finding that are printed
_NOTICE = "stopping after this step; Ctrl-C again to stop at once"


def read_config(context: click.Context, option: click.Parameter, value: str | None) -> None:
    """Make the values of a file the defaults of the options; what the command line says comes first."""
    if value is None:
        return
    from unet_batch.datasets.guess import load_toml
    from unet_batch.errors import UsageError

    try:
        document = load_toml(value)
    except (OSError, ValueError, UsageError) as error:
        raise click.BadParameter(f"{value}: {getattr(error, 'strerror', None) or error}") from error
    names = sorted(
        p.name for p in context.command.params if p.name and p.name not in ("config", "folders", "help")
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
    cls=Command,
    short_help="Train a U-Net on images and masks.",
    epilog="Exit codes: 0 trained, 1 the dataset would spoil the training, 2 wrong usage or failure, 130 "
    "interrupted.",
)
@click.argument("folders", metavar="DATASET...", nargs=-1, required=True, shell_complete=complete_path)
@dataset_options
@training_options
@option(
    "--devices",
    metavar="LIST",
    help="Train on several devices, a process each, in place of --device: numbers of GPUs such as 0,1, auto "
    "for all of them, or cpu:N.",
    section="Model",
)
@option(
    "-o",
    "--output",
    metavar="FILE",
    required=True,
    brief="Model to write: MODEL.safetensors.",
    help="Model to write: MODEL.safetensors.",
    section="Output",
)
@option("--tensorboard", is_flag=True, help="Also write the curves for TensorBoard.", section="Output")
@option(
    "--overwrite",
    is_flag=True,
    help="Start again, replacing a model or a training of this name.",
    section="Output",
)
@option(
    "--resume",
    is_flag=True,
    brief="Go on with an interrupted training.",
    help="Go on with an interrupted training, given the same options as before; begin where there is none.",
    section="Reliability",
)
@option(
    "--dry-run",
    is_flag=True,
    brief="Print the plan, and write nothing.",
    help="Print the plan, with estimates of memory and time, and write nothing.",
    section="Reliability",
)
@option(
    "--config",
    metavar="FILE",
    is_eager=True,
    expose_value=False,
    callback=read_config,
    help="Read options from a TOML file, such as epochs = 60; the command line comes first.",
    section="Display",
)
@option("-q", "--quiet", is_flag=True, help="Print errors only.", section="Display")
def train(
    folders: Sequence[str],
    data: DatasetOptions,
    options: Options,
    devices: str | None,
    output: str,
    tensorboard: bool,
    overwrite: bool,
    resume: bool,
    dry_run: bool,
    quiet: bool,
) -> None:
    """Train a U-Net on images and masks.

    \b
    Examples:
      unet-batch train ./cars -o cars.safetensors
      unet-batch train ./cars -o cars.safetensors --init default --epochs 20
      unet-batch train ./cars -o cars.safetensors --encoder efficientnet-lite0
      unet-batch train ./studio ./street -o cars.safetensors --weights 1,3
      unet-batch train ./slides -o cells.safetensors --augment elastic --flip any
      unet-batch train ./cars -o cars.safetensors --resume

    DATASET holds images/ and masks/ of the same names (_mask and the like may be added); `unet-batch
    check-data` says how it is understood. Images of one group, such as the photos of one car, stay on one
    side of the split. A training that was interrupted or killed goes on with --resume, and ends with the
    same weights. On several GPUs: --devices 0,1,2,3. On several machines torchrun starts it: torchrun ...
    -m unet_batch train ...
    """
    from unet_batch.cli.screen import Lines
    from unet_batch.datasets.join import join
    from unet_batch.errors import SplitError, UsageError
    from unet_batch.training import launch, report
    from unet_batch.training.loop import has_state
    from unet_batch.training.plan import make_plan
    from unet_batch.training.ranks import join_processes

    if resume and overwrite:
        raise UsageError("--resume goes on, --overwrite begins again", hint="give one of them")
    if devices is not None:
        names = launch.choose_devices(devices, options.device)
        if len(names) > 1 and not launch.is_launched():
            launch.launch(names, words())
            return
        options = _on_device(options, names)
    with launch.launched(), join_processes(options.device) as ranks:
        lines = Lines(quiet=quiet or not ranks.is_main, to_stderr=False)
        dataset = join([data.find(folder, faulty=True) for folder in folders])
        lines.dataset(dataset)
        try:
            plan = make_plan(dataset, output, options, processes=ranks.count)
        except SplitError:
            _print_other_faults(dataset, ranks)
            raise
        if resume and not has_state(plan):
            resume = False
            lines.line("note", f"{os.path.basename(plan.folder)}: no training to go on with yet: begins one")
        if dataset.fault is not None and (resume or dry_run):
            raise dataset.fault
        _print_plan(lines, plan, ranks)
        if dry_run:
            _print_estimate(lines, plan)
            return
        _refuse_existing(plan, resume=resume, overwrite=overwrite)
        with report.lock_folder(plan, ranks):
            frequencies = None if resume else _check_pairs(lines, plan, ranks)
            outcome = _train(lines, plan, ranks, frequencies, resume=resume, tensorboard=tensorboard)
            if not ranks.is_main:
                return
            if outcome.ended == "interrupted":
                done = len(outcome.history)
                click.echo(
                    f"interrupted after {done} epochs; the same command with --resume goes on", err=True
                )
                raise SystemExit(130)
            _finish(lines, plan, outcome)


def _on_device(options: Options, names: Sequence[str]) -> Options:
    """The options of one process among those of `--devices`, which counts the GPUs that it has been left."""
    if not names or names[0] == "auto":
        return options
    return replace(options, device=names[0] if len(names) == 1 else names[0].partition(":")[0])


def _print_plan(lines: Lines, plan: TrainingPlan, ranks: Ranks) -> None:
    spec, options = plan.spec, plan.options
    height, width = spec.input_size
    names = spec.classes.names
    for reason in plan.reasons:
        lines.line("", reason)
    lines.line(
        "model",
        spec.network,
        f"{plan.parameters / 1e6:.1f} M parameters",
        f"{height}x{width}",
        "" if spec.in_channels == 3 else f"{spec.in_channels} channels",
        names[0] if len(names) == 1 else f"{len(names)} classes",
    )
    lines.line(
        "training",
        f"{options.epochs} epochs of {plan.steps:,} steps, {plan.batch_size} {plan.sample_name} each",
        f"learning rate {plan.lr:g}",
        f"augment {options.augment}, flip {options.flip}",
        f"seed {options.seed}",
    )
    left = plan.samples % plan.batch_size
    if left > plan.batch_size // 2 and plan.steps < 8:
        lines.line(
            "note",
            f"{left} of {plan.samples} {plan.sample_name} wait for the next epoch each time: --batch-size "
            f"fits better?",
        )
    lines.line(
        "device", f"{plan.device} {plan.precision}", f"{ranks.count} processes" if ranks.count > 1 else ""
    )


def _print_estimate(lines: Lines, plan: TrainingPlan) -> None:
    from unet_batch.cli.text import clock
    from unet_batch.training.estimate import estimate

    needs = estimate(plan)
    weights, activations = needs.weights_bytes, needs.activation_bytes
    lines.line(
        "memory",
        f"{gigabytes(weights + activations)} to train",
        f"weights and their moments {gigabytes(weights)}, a batch {gigabytes(activations)}",
    )
    lines.line(
        "",
        f"{gigabytes(needs.samples_bytes)} of samples, {needs.cached:.0%} of them kept in memory, the rest "
        f"is decoded again each epoch",
    )
    lines.line(
        "time",
        f"about {clock(needs.epoch_seconds)} an epoch, "
        f"{clock(needs.epoch_seconds * plan.options.epochs)} in all",
        f"{needs.step_seconds:.2f} s a step, on noise",
    )
    lines.line("dry run", "nothing was written")


def _refuse_existing(plan: TrainingPlan, *, resume: bool, overwrite: bool) -> None:
    from unet_batch.cli.text import shown
    from unet_batch.errors import UsageError
    from unet_batch.training.loop import has_state

    if resume or overwrite:
        return
    if has_state(plan):
        raise UsageError(
            f"{shown(plan.folder)}: holds a training",
            hint="--resume goes on with it, --overwrite begins again, or choose another -o",
        )
    for path in (plan.output, plan.card):
        if os.path.exists(path):
            raise UsageError(f"{shown(path)}: exists", hint="--overwrite replaces it, or choose another -o")


def _check_pairs(lines: Lines, plan: TrainingPlan, ranks: Ranks) -> list[float]:
    """Check the dataset and return the class frequencies; exit, in every process, where it is not sound."""
    from unet_batch.cli.progress import staged
    from unet_batch.training.check import check_pairs

    results: list[tuple[bool, list[float]]] = []
    if ranks.is_main:
        total = len(plan.train) + len(plan.val)
        with staged(lines) as progress:
            found = check_pairs(plan, lambda done: progress(f"checking {total:,} pairs", done / total))
        _print_check(lines, plan, found)
        results = [(found.report.ok, found.class_frequencies)]
    ok, frequencies = ranks.gather(results)[0]
    if not ok:
        raise SystemExit(1)
    return list(frequencies)


def _print_check(lines: Lines, plan: TrainingPlan, found: PairsCheck) -> None:
    from unet_batch.cli.text import shown

    if found.left_out:
        left_out = f"{len(found.left_out):,} files without a partner, or with several, are left out"
        lines.line("note", left_out, shown(found.left_out[0]))
    _print_errors(found.report.findings)
    for finding in found.report.findings:
        if finding.severity == "warning":
            lines.line("warning", f"{finding.kind}: {finding.message}", "; ".join(_cases(finding)))
    if found.report.ok:
        lines.line("checked", f"{found.report.pairs:,} pairs are fit for training")


def _print_other_faults(dataset: Dataset, ranks: Ranks) -> None:
    """Say what else is wrong with a dataset that cannot be parted; in one process, the others wait for it."""
    from unet_batch.datasets.check import NO_SPLIT, check

    if ranks.is_main:
        _print_errors([finding for finding in check(dataset).findings if finding.kind != NO_SPLIT])
    ranks.barrier()


def _print_errors(findings: Sequence[Finding]) -> None:
    """Print the errors, also where --quiet is given."""
    errors = [finding for finding in findings if finding.severity == "error"]
    for finding in errors:
        print_error(f"{finding.kind}: {finding.message}", finding.fix, _cases(finding))
    if errors:
        click.echo("not trained; `unet-batch check-data` shows every case", err=True)


def _cases(finding: Finding) -> list[str]:
    """The first cases of a finding, and how many more there are."""
    more = len(finding.files) - _SHOWN
    return [*finding.files[:_SHOWN], *([f"and {more:,} more"] if more > 0 else [])]


def _train(
    lines: Lines,
    plan: TrainingPlan,
    ranks: Ranks,
    class_frequencies: Sequence[float] | None,
    *,
    resume: bool,
    tensorboard: bool,
) -> Outcome:
    from unet_batch.cli.progress import training
    from unet_batch.processes.process import keep_memory
    from unet_batch.training.loop import train as run
    from unet_batch.training.report import Curves

    keep_memory()
    signals: list[str] = []
    with (
        # Launchers repeat SIGTERM: only a person who insists ends a training without its state.
        finish_first(
            signals.append,
            _NOTICE if ranks.is_main else "",
            numbers=(*INTERRUPTS, *HANGUP),
            again=(signal.SIGINT,),
        ),
        training(lines, plan) as (on_step, on_epoch),
        Curves(plan, tensorboard) as curves,
    ):

        def on_epoch_end(history: Sequence[dict[str, Any]]) -> None:
            curves.add(history)
            on_epoch(history)

        return run(
            plan,
            class_frequencies=class_frequencies or (),
            ranks=ranks,
            resume=resume,
            on_step=on_step,
            on_epoch=on_epoch_end,
            stop=lambda: bool(signals),
        )


def _finish(lines: Lines, plan: TrainingPlan, outcome: Outcome) -> None:
    from unet_batch.cli.progress import staged
    from unet_batch.cli.text import clock, shown
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
    for place, text, over in report.headline(found):
        lines.line("validated", place, text, over)
    for failure in found.failures[:3]:
        lines.warn(failure.message, failure.hint)
    lines.line("written", shown(plan.output), shown(plan.card), shown(plan.folder) + os.sep)
    listed = "val-NAME.txt" if plan.dataset.parts else "val.txt"
    lines.line(
        "",
        f"{shown(plan.folder)}/{listed} names the images that took no part: unet-batch evaluate DATASET "
        f"--split ...",
    )
    lines.line("next", f"unet-batch run ./photos -m {shown(plan.output)} --overlay")
