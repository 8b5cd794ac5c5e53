"""`unet-batch merge`."""

from __future__ import annotations

import click

from unet_batch.cli.errors import reported


@click.command(short_help="Join what the shards of a run left in a folder.")
@click.argument("output", metavar="OUT")
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@reported
def merge(output: str, quiet: bool) -> None:
    """Join the manifests, failures and reports of shards in the output folder OUT, as if one run had made everything.

    Later runs read the manifests of shards as well: this is for tidiness, and for one report and one list of failures.

    \b
    Example:
      unet-batch run ./photos -o out --shard 1/2
      unet-batch run ./photos -o out --shard 2/2
      unet-batch merge out
    """
    from unet_batch.cli.screen import Screen
    from unet_batch.run.merge import merge as join

    report = join(output)
    Screen(quiet=quiet, verbose=False, to_stderr=False).summary(report)
    raise SystemExit(0 if report.status == "done" else 1)
