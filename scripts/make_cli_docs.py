"""Write docs/cli.md: the help of every command, as the terminal shows it at 80 columns.

    python -m scripts.make_cli_docs [-o FILE]

Run it after a change of a command; a test compares. The text depends on click's own wrapping, so take the
version that constraints.txt pins.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import click
from click.testing import CliRunner

from unet_batch.cli import main

PAGE = Path(__file__).resolve().parent.parent / "docs" / "cli.md"
COLUMNS = 80
INTRODUCTION = """\
# Command line

<!-- Written by `python -m scripts.make_cli_docs`: change the commands, not this page. -->

What `unet-batch COMMAND --help all` prints; `--help` alone says what most people need.
What the commands do in more words:
[photos](run.md), [videos](video.md), [TensorRT](tensorrt.md), [training](training.md),
[evaluation](evaluate.md); what they say when something is wrong: [errors](errors.md).
"""


def page() -> str:
    """The whole of docs/cli.md."""
    assert isinstance(main, click.Group)
    commands = (f"## {name}\n\n" + _block(f"unet-batch {name}", [name]) for name in main.commands)
    return "\n".join([INTRODUCTION, _block("unet-batch", []), *commands])


def _block(title: str, words: list[str]) -> str:
    # The width is given three times: to click, and to whatever asks the terminal.
    runner = CliRunner(env={"COLUMNS": str(COLUMNS), "NO_COLOR": "1", "TERM": "dumb"})
    arguments = [*words, "--help", *(["all"] if words else [])]
    result = runner.invoke(
        main, arguments, prog_name="unet-batch", terminal_width=COLUMNS, max_content_width=COLUMNS
    )
    if result.exit_code:
        raise RuntimeError(f"{title} --help: {result.output}")
    lines = (line.rstrip() for line in click.unstyle(result.output).strip().splitlines())
    return "```text\n" + "\n".join(lines) + "\n```\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=PAGE, metavar="FILE")
    parser.parse_args().output.write_text(page(), encoding="utf-8", newline="\n")
