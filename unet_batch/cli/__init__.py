"""The command line: parse, call, print. What is heavy is imported inside the commands, for a fast --help."""

from __future__ import annotations

import click

from unet_batch.cli.audit import audit
from unet_batch.cli.bench import bench
from unet_batch.cli.check_data import check_data
from unet_batch.cli.command import Program
from unet_batch.cli.diff import diff
from unet_batch.cli.doctor import doctor
from unet_batch.cli.engine import build_engine, inspect
from unet_batch.cli.evaluate import evaluate
from unet_batch.cli.import_graph import import_graph
from unet_batch.cli.import_weights import import_weights
from unet_batch.cli.labels import labels
from unet_batch.cli.merge import merge
from unet_batch.cli.pick import pick
from unet_batch.cli.report import report
from unet_batch.cli.run import run, watch
from unet_batch.cli.sample import sample
from unet_batch.cli.train import train
from unet_batch.version import __version__


@click.group(
    "unet-batch",
    cls=Program,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="""\b
    Tab completion (also with zsh_source or fish_source):
      eval "$(_UNET_BATCH_COMPLETE=bash_source unet-batch)"
    """,
)
@click.version_option(__version__, "-V", "--version", message="unet-batch %(version)s")
def main() -> None:
    """Segment folders of photos and videos with a U-Net.

    \b
    Try it on drawn scenes:
      unet-batch sample demo
      unet-batch run demo/photos --overlay
    """


for command in (
    run,
    watch,
    merge,
    labels,
    report,
    pick,
    audit,
    diff,
    sample,
    doctor,
    train,
    evaluate,
    check_data,
    import_graph,
    import_weights,
    build_engine,
    inspect,
    bench,
):
    main.add_command(command)
