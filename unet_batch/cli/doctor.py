"""`unet-batch doctor`."""

from __future__ import annotations

from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING

import click

from unet_batch.cli.command import Command

if TYPE_CHECKING:
    from unet_batch.doctor.checks import Check

_STYLES = {"ok": "green", "missing": "bold red", "broken": "bold red", "off": "dim"}


@click.command(
    cls=Command,
    short_help="What can run on this machine, why not, and what to install.",
    epilog="Exit codes: 0 `unet-batch run` can work, 1 it cannot.",
)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON on stdout.")
def doctor(as_json: bool) -> None:
    """Say what can run on this machine, why not, and the command that would change it.

    \b
    Examples:
      unet-batch doctor
      unet-batch doctor --json > report.json

    Looks at the processor, the NVIDIA driver and its GPUs, and at every library that a run or an engine may
    need; each is imported in a process of its own, so that a broken one can be named. Nothing is installed.
    """
    from unet_batch.cli.screen import console, print_json
    from unet_batch.doctor.checks import chosen, examine

    with console(stderr=True).status("importing each library once ..."):  # on terminals only
        checks = examine()
    if as_json:
        print_json(_as_dict(checks))
    else:
        _print(checks)
    raise SystemExit(0 if chosen(checks).status == "ok" else 1)


def _print(checks: tuple[Check, ...]) -> None:
    from unet_batch.cli.screen import console
    from unet_batch.cli.text import printable, wrap
    from unet_batch.doctor.checks import chosen, faster

    out = console()
    # A pipe gets whole lines: what reads them searches by line.
    width = out.width if out.is_terminal else None
    name_width = max(len(check.name) for check in checks)
    for group, members in groupby(checks, lambda check: check.group):
        out.print(group, style="bold cyan")
        for check in members:
            out.print(f"  {check.status:<9}", style=_STYLES[check.status], end="")
            detail = wrap(printable(check.detail), width, indent=2 + 9 + name_width + 2)
            out.print(f"{check.name:<{name_width}}  {detail}", style="dim" if check.status == "off" else None)
        out.print()

    fixes: dict[str, list[Check]] = {}
    for check in checks:
        if check.fix:
            fixes.setdefault(check.fix, []).append(check)
    optional = [fix for fix, helped in fixes.items() if all(check.status == "off" for check in helped)]
    for title, commands in (
        ("to fix", [fix for fix in fixes if fix not in optional]),
        ("optional", optional),
    ):
        if commands:
            out.print(title, style="bold cyan")
            for fix in commands:
                out.print(f"  # {', '.join(dict.fromkeys(check.name for check in fixes[fix]))}", style="dim")
                out.print(f"  {printable(fix)}")  # a line of its own, never broken: it is there to be copied
            out.print()

    run, better = chosen(checks), faster(checks)
    if run.status != "ok":
        out.print(
            wrap(printable(f"`unet-batch run` cannot work here: {run.detail}"), width), style="bold red"
        )
        return
    out.print("`unet-batch run` will use ", end="")
    out.print(run.detail, style="bold green", end="")
    out.print(".")
    if better is not None:
        out.print(f"Fastest on this machine would be {better.name}: see above what it takes.")


def _as_dict(checks: tuple[Check, ...]) -> dict[str, object]:
    from unet_batch.doctor.checks import chosen

    run = chosen(checks)
    works = run.status == "ok"
    return {
        "works": works,
        "run": run.detail if works else "",
        "checks": [asdict(check) for check in checks],
    }
