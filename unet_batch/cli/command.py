"""The program, its commands and options as click classes: help in sections, one style of error."""

from __future__ import annotations

import functools
import inspect
import io
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import click
from click.exceptions import NoArgsIsHelpError
from click.shell_completion import CompletionItem

from unet_batch.cli.text import arguments_with_spaces, columns, printable, wrap
from unet_batch.errors import UnetBatchError
from unet_batch.files import naming

if TYPE_CHECKING:
    from click.types import OptionHelpExtra
    from typing_extensions import Buffer

    ParamType = click.ParamType[object]
else:  # before click 8.5 it is not generic
    ParamType = click.ParamType

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
Callback = Callable[..., None]

SECTIONS = (
    "Data",
    "Model",
    "View",
    "Measurement",
    "Schedule",
    "Loss",
    "Augmentation",
    "Engine",
    "Build",
    "Output",
    "Clean-up",
    "Video",
    "Reliability",
    "Scale",
    "Display",
)
"""Headings of options in `--help`, in this order."""


_FIRST, _ALL = "", "all"  # of `--help`: the first screen, and everything
_HYPHEN = "\u2011"  # which no line is broken at


def complete_path(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """Files and folders, which the shell itself finds."""
    return [CompletionItem(typed, type="file")]


class Option(click.Option):
    """An option that `--help` shows under a heading.

    Args:
        section: one of `SECTIONS`; "" for commands with few options.
        brief: what the first screen of help says of it; "" leaves it to its section.
    """

    def __init__(self, *arguments: Any, section: str = "", brief: str = "", **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.section, self.brief = section, brief

    def get_help_extra(self, ctx: click.Context) -> OptionHelpExtra:
        """What stands in brackets: no ranges, which errors tell whoever leaves them."""
        extra = super().get_help_extra(ctx)
        extra.pop("range", None)
        return extra

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Values for the shell to offer; any text may be a path."""
        found = super().shell_complete(ctx, incomplete)
        return found or (complete_path(ctx, self, incomplete) if self.type is click.STRING else [])


option: Callable[..., Callable[[F], F]] = functools.partial(click.option, cls=Option)
"""As `click.option`, with the argument `section`."""


class Parsed(ParamType):
    """The type of an option whose text a function understands.

    Args:
        parse: returns the value; raises ValueError with what is wrong.
        complete: the values that begin as what is typed, for the shell.
    """

    name = "text"

    def __init__(
        self, parse: Callable[[str], object], complete: Callable[[str], list[str]] = lambda typed: []
    ) -> None:
        self.parse, self.complete = parse, complete

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> object:
        """The value, which a file of options may have given as a number."""
        try:
            return self.parse(str(value)) if isinstance(value, str | int | float) else value
        except ValueError as error:
            self.fail(str(error), param, ctx)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Values for the shell to offer."""
        return [CompletionItem(value) for value in self.complete(incomplete)]


class Bundle(Generic[T]):
    """Options that a command gets together, as one value.

    Used as a decorator, below the options that `--help` shows before these.

    Args:
        keyword: the command's argument that takes the value.
        make: called with the values of the options by name.
        options: in the order of `--help`.
    """

    def __init__(self, keyword: str, make: Callable[..., T], *options: Option | click.Argument) -> None:
        self.keyword, self.make, self.options = keyword, make, options

    def without(self, *names: str) -> Bundle[T]:
        """All but these; `make` has defaults for them."""
        return Bundle(self.keyword, self.make, *(each for each in self.options if each.name not in names))

    def __call__(self, command: Callback) -> Callback:
        """Give a command these options."""
        names = [str(each.name) for each in self.options]

        @functools.wraps(command)
        def bundled(**values: Any) -> None:
            own = {name: values.pop(name) for name in names}
            command(**values, **{self.keyword: self.make(**own)})

        params: list[click.Parameter] = bundled.__dict__.setdefault("__click_params__", [])
        params.extend(reversed(self.options))
        return bundled


class Formatter(click.HelpFormatter):
    """Writes help that breaks lines at spaces only: `--batch-size` and `unet-batch` stay whole."""

    def write_text(self, text: str) -> None:
        """Write a paragraph."""
        super().write_text(text.replace("-", _HYPHEN))

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        """Write names with their meanings beside them, which keep most of a narrow terminal."""
        whole = [(name, text.replace("-", _HYPHEN)) for name, text in rows]
        super().write_dl(whole, min(col_max, self.width * 3 // 10), col_spacing)

    def getvalue(self) -> str:
        """The help as text."""
        return super().getvalue().replace(_HYPHEN, "-")


class Context(click.Context):
    """What click knows of a command line; here for its formatter of help."""

    formatter_class = Formatter


_WORDS = "unet_batch.words"


def words() -> tuple[str, ...]:
    """The words behind the name of the command that runs, as they were typed."""
    return tuple(click.get_current_context().meta.get(_WORDS, ()))


def command_line() -> str:
    """The command that runs, as a shell would take it; addresses without their secrets."""
    context = click.get_current_context()
    return shlex.join([*context.command_path.split(), *map(naming.shown, words())])


class Command(click.Command):
    """A command whose help shows its options in sections.

    Where options have a `brief`, `--help` shows those on a screen, with the names of the others; `--help
    SECTION` shows a section, `--help all` everything.
    """

    context_class = Context

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Remember the words before they are taken apart, for `command_line`."""
        ctx.meta[_WORDS] = tuple(args)
        return super().parse_args(ctx, args)

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        """`--help`, which takes the name of a section."""
        if self._help_option is None and (option := super().get_help_option(ctx)) is not None:
            self._help_option = Option(
                [*option.opts, "_help"],
                metavar="[SECTION]",
                type=Parsed(
                    str, lambda typed: [name for name in self._topics(ctx) if name.startswith(typed)]
                ),
                is_flag=False,
                flag_value=_FIRST,
                is_eager=True,
                expose_value=False,
                callback=self._show_help,
                help="Show help: of a section, or all.",
            )
        return self._help_option

    def _show_help(self, context: click.Context, parameter: click.Parameter, topic: str | None) -> None:
        if topic is None or context.resilient_parsing:
            return
        formatter, brief = context.make_formatter(), self._brief(context)
        section = self._topics(context).get(topic.lower().rstrip(":"))
        if section is not None:
            self.format_usage(context, formatter)
            self._write_sections(context, formatter, only=section)
        elif brief and topic.lower() != _ALL:  # whatever else followed, such as a path
            self._write_first_screen(context, formatter, brief)
        else:
            self.format_help(context, formatter)
        click.echo(formatter.getvalue().rstrip("\n"), color=context.color)
        context.exit()

    def _topics(self, context: click.Context) -> dict[str, str]:
        """Sections by the names that `--help` takes."""
        return {section.lower(): section for section in self._sections(context) if section}

    def _brief(self, context: click.Context) -> list[tuple[str, str]]:
        """Names and meanings of the options on the first screen."""
        records = []
        for parameter in self.get_params(context):
            if isinstance(parameter, Option) and parameter.brief:
                record = parameter.get_help_record(context)
                names = re.sub(r"\[.*\]$", "NAME", record[0]) if record is not None else ""
                records += [(names, parameter.brief)] if names else []
        return records

    def _write_first_screen(
        self, context: click.Context, formatter: click.HelpFormatter, brief: list[tuple[str, str]]
    ) -> None:
        """What it is for, examples, the options that most people need, and where the others are."""
        self.format_usage(context, formatter)
        text = inspect.cleandoc(self.help or "")
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text("\n\n".join(text.split("\n\n")[:2]))
        with formatter.section("Options"):
            formatter.write_dl(brief)
        topics = []
        for name, section in self._topics(context).items():
            others = [
                parameter.opts[-1]
                for parameter in self.get_params(context)
                if isinstance(parameter, Option) and parameter.section == section and not parameter.brief
            ]
            if others:
                topics.append((f"--help {name}", _fitting(others, formatter.width - 24)))
        with formatter.section("More options"):
            formatter.write_dl([*topics, (f"--help {_ALL}", "everything")])

    def _sections(self, context: click.Context) -> dict[str, list[tuple[str, str]]]:
        """Names and meanings of the options by section, in order; those without one come last."""
        found: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(context):
            record = parameter.get_help_record(context)
            if record is not None and isinstance(parameter, click.Option):
                found.setdefault(getattr(parameter, "section", ""), []).append(record)
        rest = found.pop("", [])
        named = {name: found[name] for name in SECTIONS if name in found}
        if not named:
            return {"": rest}
        named[next(reversed(named))].extend(rest)
        return named

    def _write_sections(
        self, context: click.Context, formatter: click.HelpFormatter, only: str | None = None
    ) -> None:
        for heading, records in self._sections(context).items():
            if only in (None, heading):
                with formatter.section(heading or "Options"):
                    formatter.write_dl(records)

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options section by section; those without one come last."""
        self._write_sections(context, formatter)


def _fitting(names: Sequence[str], width: int) -> str:
    """As many names as a line holds."""
    line = ", ".join(names)
    while len(line) > width and len(names) > 1:
        names = names[:-1]
        line = ", ".join(names) + ", ..."
    return line


class Program(click.Group):
    """`unet-batch`: all errors look alike, and have exit code 2; Ctrl-C has 130."""

    context_class = Context

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order they were added, which is the order they are met in."""
        return list(self.commands)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command line, and end the process with its exit code."""
        run = functools.partial(
            super().main, args, prog_name, complete_var, False, windows_expand_args, **extra
        )
        if not standalone_mode:
            return run()
        with lasting_streams():
            sys.exit(self._exit_code(run))

    def _exit_code(self, run: Callable[[], object]) -> int:
        """Run the command, and print what ends it."""
        try:
            code = run()
        except NoArgsIsHelpError as error:
            error.show()
            code = error.exit_code
        except click.UsageError as error:
            path = error.ctx.command_path if error.ctx is not None else self.name
            print_error(error.format_message().rstrip("."), f"Try '{path} --help'")
            code = error.exit_code
        except click.ClickException as error:
            print_error(error.format_message())
            code = error.exit_code
        except UnetBatchError as error:
            print_error(error.message, error.hint)
            code = 2
        except (click.Abort, KeyboardInterrupt):
            click.echo("interrupted", err=True)
            code = 130
        return code if isinstance(code, int) else 0


class _Outlet(io.FileIO):
    """A standard stream that nobody has to look after: once it cannot be written, it takes all and drops it.

    Attributes:
        error: why it cannot be written; None while it can.
    """

    error: OSError | None = None

    def write(self, data: Buffer, /) -> int:
        """Write what fits, and say how many bytes that were."""
        try:
            return super().write(data)
        except OSError as error:  # a full disk, a reader that has gone, a terminal that was closed
            self.error = error
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            return memoryview(data).nbytes


@contextmanager
def lasting_streams() -> Iterator[None]:
    """Let no command end because what it says cannot be written; say so at its end.

    A night's work must not be lost over a full disk that holds its log, nor over a `head` that has seen
    enough. Where stdout could not take everything, the exit code is 2, unless the command failed in its own
    way. A reader that has gone wanted no more: that changes no exit code.
    """
    for descriptor in range(3):  # or the next file gets the number, and what a library prints is in it
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    outlets: dict[str, _Outlet] = {}
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever has started this: `>&-`
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for the rest of the process
        if not isinstance(stream, io.TextIOWrapper):
            continue
        # A file name that the terminal's encoding lacks must not end a run of ten thousand.
        stream.reconfigure(errors="backslashreplace")
        with suppress(OSError, ValueError):
            if os.name == "nt" and stream.isatty():
                continue  # Python writes to that window by other means
            outlets[name] = _Outlet(stream.fileno(), "wb", closefd=False)
            line_buffering = name == "stderr" or stream.line_buffering or stream.write_through
            lasting = io.TextIOWrapper(
                io.BufferedWriter(outlets[name]),
                stream.encoding,
                "backslashreplace",
                line_buffering=line_buffering,
            )
            setattr(sys, name, lasting)
    try:
        yield
    except SystemExit as end:
        for name in outlets:
            getattr(sys, name).flush()
        error = outlets["stdout"].error if "stdout" in outlets else None
        if error is not None:
            reason, gone = error.strerror or error, isinstance(error, BrokenPipeError)
            hint = "" if gone else "free some space; only what should have been printed is lost, no file"
            print_error(f"stdout cannot be written: {reason}", hint)
            if not end.code and not gone:
                raise SystemExit(2) from end
        raise


def print_error(
    message: str, hint: str = "", details: Sequence[str] = (), *, width: int | None = None
) -> None:
    """Print what went wrong and what helps on stderr, broken at words on a terminal.

    Args:
        message: what happened.
        hint: what to do about it; may be empty.
        details: lines of their own between the two.
        width: columns; None takes the terminal's, and whole lines in a pipe.
    """
    width, keep = width or columns(sys.stderr), arguments_with_spaces()
    for label, style, text in (
        ("error: ", "red", message),
        *(("       ", None, detail) for detail in details),
        *([(" hint: ", "yellow", hint)] if hint else []),
    ):
        body = wrap(printable(text), width, len(label), keep)
        click.echo(click.style(label, fg=style, bold=True) + body, err=True)
