"""The command line: parse, call, print. Everything heavy is imported inside the commands, so that `--help` is
instant.
"""

from __future__ import annotations

import io
import sys

import click

from unet_batch.cli.check_data import check_data
from unet_batch.cli.doctor import doctor
from unet_batch.cli.engine import build_engine, inspect
from unet_batch.cli.evaluate import evaluate
from unet_batch.cli.import_weights import import_weights
from unet_batch.cli.merge import merge
from unet_batch.cli.run import run, watch
from unet_batch.cli.sample import sample
from unet_batch.cli.train import train
from unet_batch.version import __version__


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, "-V", "--version", message="unet-batch %(version)s")
def main() -> None:
    """Segment folders of photos and videos with a U-Net.

    \b
    Try it on drawn scenes:
      unet-batch sample demo
      unet-batch run demo/photos --overlay
    """
    # A file name that the terminal's encoding lacks must not end a run of ten thousand.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


main.add_command(run)
main.add_command(watch)
main.add_command(merge)
main.add_command(build_engine)
main.add_command(inspect)
main.add_command(import_weights)
main.add_command(check_data)
main.add_command(train)
main.add_command(evaluate)
main.add_command(sample)
main.add_command(doctor)
