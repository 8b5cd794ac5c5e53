"""`unet-batch merge`."""

from __future__ import annotations

import click

from unet_batch.cli.command import Command, complete_path


@click.command(cls=Command, short_help="Join what the shards of a run left in a folder.")
@click.argument("output", metavar="OUT", shell_complete=complete_path)
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
def merge(output: str, quiet: bool) -> None:
    """Join what shards left in the output folder OUT, as if one run had made everything.

    \b
    Example:
      unet-batch run ./photos -o out --shard 1/2
      unet-batch run ./photos -o out --shard 2/2
      unet-batch merge out

    Their manifests, failures and reports become one. Later runs read the manifests of shards as well: this is
    for tidiness, and for one report and one list of failures.
    """
    from unet_batch.cli.screen import Screen
    from unet_batch.cli.summary import print_summary
    from unet_batch.run.merge import merge as join

    report = join(output)
    print_summary(Screen(quiet=quiet, verbose=False, to_stderr=False), report)
    raise SystemExit(0 if report.status == "done" else 1)
