"""Help in sections at any width, errors of one style, and what the shell completes."""

from __future__ import annotations

import os
import re
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from unet_batch.cli import main
from unet_batch.cli.command import SECTIONS, print_error
from unet_batch.cli.text import wrap
from unet_batch.model.zoo import BUNDLED

WIDTHS = (60, 80, 120)


SHORT = ("run", "watch", "train", "evaluate", "build-engine")  # commands with a first screen


def help_of(command: str, width: int = 80, topic: str = "all") -> str:
    words = [command, "--help", topic] if topic else [command, "--help"]
    return CliRunner().invoke(main, words, terminal_width=width).output


def headings(text: str) -> list[str]:
    return re.findall(r"^([\w-]+):$", text, re.MULTILINE)


class TestHelp:
    @pytest.mark.parametrize("width", WIDTHS)
    @pytest.mark.parametrize("command", sorted(main.commands))
    def test_fits_the_terminal(self, command: str, width: int) -> None:
        example = re.compile(r" +unet-batch ")  # never broken: it is there to be copied
        for line in help_of(command, width).splitlines():
            assert len(line) <= width or example.match(line), line
            assert len(line) <= 80 or width > 80, "an example is short enough, too"

    @pytest.mark.parametrize("command", sorted(main.commands))
    def test_examples_come_first(self, command: str) -> None:
        _, _, first, *_ = re.split(r"\n\n", help_of(command))
        assert re.match(r"  Examples?:\n    unet-batch ", first)

    def test_sections(self) -> None:
        sections = ["Model", "View", "Output", "Clean-up", "Video", "Reliability", "Scale", "Display"]
        assert headings(help_of("run")) == sections
        assert headings(help_of("watch")) == sections
        assert headings(help_of("evaluate")) == ["Data", "Model", "View", "Output", "Scale", "Display"]
        assert headings(help_of("train"))[:5] == ["Data", "Model", "Schedule", "Loss", "Augmentation"]

    @pytest.mark.parametrize("command", sorted(main.commands))
    def test_no_option_is_missing(self, command: str) -> None:
        text = help_of(command)
        for parameter in main.commands[command].params:
            section = getattr(parameter, "section", "")
            assert not section or section in SECTIONS
            if isinstance(parameter, click.Option):
                assert re.search(rf"^  (-\w, )?{parameter.opts[-1]}\b", text, re.MULTILINE), parameter.name

    @pytest.mark.parametrize("command", SHORT)
    def test_the_first_screen_is_one(self, command: str) -> None:
        text = help_of(command, topic="")
        lines = text.splitlines()
        assert len(lines) <= 40
        assert max(map(len, lines)) <= 80
        assert re.match(r"  Examples?:\n    unet-batch ", re.split(r"\n\n", text)[2])
        assert headings(text.replace("More options", "More")) == ["Options", "More"]

    @pytest.mark.parametrize("command", SHORT)
    def test_what_is_not_on_the_first_screen_is_in_its_section(self, command: str) -> None:
        first, sections = help_of(command, topic=""), headings(help_of(command))
        named = re.findall(r"^  --help ([a-z-]+)", first, re.MULTILINE)
        assert named[-1] == "all"
        assert set(named[:-1]) <= {section.lower() for section in sections}
        listed = "".join(help_of(command, topic=name) for name in named[:-1])
        for parameter in main.commands[command].params:
            if isinstance(parameter, click.Option):
                shown = rf"^  (-\w, )?{parameter.opts[-1]}\b"
                assert re.search(shown, first, re.MULTILINE) or re.search(shown, listed, re.MULTILINE)

    @pytest.mark.parametrize("words", [["--help", "video"], ["--help=Video"], ["-h", "VIDEO:"]])
    def test_a_section_alone(self, words: list[str]) -> None:
        text = CliRunner().invoke(main, ["run", *words], terminal_width=80).output
        assert headings(text) == ["Video"]
        assert "--every" in text
        assert "--threshold" not in text

    @pytest.mark.parametrize(
        "words",
        [
            ["-h"],
            ["--help", "./photos"],
            ["./photos", "--help"],
            ["--help", "-o", "out"],
            ["photos", "-h", "x.jpg"],
        ],
    )
    def test_help_beside_other_words_is_the_first_screen(self, words: list[str]) -> None:
        result = CliRunner().invoke(main, ["run", *words], terminal_width=80)
        assert (result.exit_code, result.output) == (0, help_of("run", topic=""))

    def test_few_options_need_no_first_screen(self) -> None:
        assert help_of("inspect", topic="") == help_of("inspect")
        assert help_of("inspect", topic="x.onnx") == help_of("inspect")

    @pytest.mark.parametrize("width", WIDTHS)
    def test_options_in_texts_are_not_broken(self, width: int) -> None:
        assert not re.search(r"\w-\n", "".join(help_of(command, width) for command in main.commands))


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "message", "hint"),
        [
            (["run"], "Missing argument 'SOURCE...'", "Try 'unet-batch run --help'"),
            (["run", "x", "--size", "3"], "'3' is not a size", "Try 'unet-batch run --help'"),
            (["runn"], "No such command 'runn'", "Try 'unet-batch --help'"),
            (["run", "none/x.jpg"], "none/x.jpg does not exist", "there is no folder"),
        ],
    )
    def test_clicks_and_ours_look_alike(self, arguments: list[str], message: str, hint: str) -> None:
        result = CliRunner().invoke(main, arguments)
        first, second = result.stderr.splitlines()
        assert result.exit_code == 2
        assert (first[:7], message in first) == ("error: ", True)
        assert (second[:7], hint in second) == (" hint: ", True)

    def test_break_at_words_on_a_terminal(self, capsys: pytest.CaptureFixture[str]) -> None:
        path = "/a/folder/whose/name/is/much/longer/than/a/terminal/is/wide/and/stays/whole.jpg"
        print_error(
            f"{path}: an empty file, or one that is no picture", "leave it out", ["case one"], width=60
        )
        lines = capsys.readouterr().err.splitlines()
        assert lines == [
            f"error: {path}:",
            "       an empty file, or one that is no picture",
            "       case one",
            " hint: leave it out",
        ]

    def test_a_path_with_spaces_stays_whole(self) -> None:
        text = wrap(
            "my photos of cars/one of them.jpg: an empty file", 24, 7, ["my photos of cars/one of them.jpg"]
        )
        assert text == "my photos of cars/one of them.jpg:\n       an empty file"

    def test_a_pipe_gets_whole_lines(self) -> None:
        assert wrap("word " * 50, None, 7) == "word " * 50


class TestCompletion:
    def complete(self, *words: str) -> list[tuple[str, str]]:
        *before, last = words
        found = ShellComplete(main, {}, "unet-batch", "_UNET_BATCH_COMPLETE").get_completions(before, last)
        return [(item.type, item.value) for item in found]

    def test_commands_and_options(self) -> None:
        assert ("plain", "watch") in self.complete("wa")
        assert ("plain", "--smooth") in self.complete("run", "--sm")
        assert ("plain", "video") in self.complete("run", "--help", "vi")

    def test_models(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        for name in ("fancy.safetensors", "fancy.txt", "fancy.onnx", "other.safetensors"):
            (tmp_path / name).touch()
        checkpoints = [("dir", "fa"), ("plain", "fast"), ("plain", "fancy.safetensors")]
        for command in (["run", "-m"], ["watch", "-m"], ["evaluate", "-m"], ["build-engine"]):
            assert self.complete(*command, "fa") == [*checkpoints, ("plain", "fancy.onnx")]
        assert self.complete("train", "--init", "fa") == checkpoints, "which has weights to begin with"
        os.mkdir("models")
        (tmp_path / "models" / "deep.safetensors").touch()
        assert ("plain", "models/deep.safetensors") in self.complete("run", "-m", "models/")

    def test_bundled_models_say_what_they_are_for(self) -> None:
        complete = ShellComplete(main, {}, "unet-batch", "_UNET_BATCH_COMPLETE").get_completions
        found = {item.value: item.help for item in complete(["run", "-m"], "")}
        assert {name: bundled.purpose for name, bundled in BUNDLED.items()}.items() <= found.items()

    def test_paths(self) -> None:
        """Completion by a function replaces the shell's own, which would have found files."""
        for command in (
            ["run"],
            ["run", "car.jpg"],
            ["run", "-o"],
            ["evaluate"],
            ["train", "--masks"],
            ["merge"],
        ):
            assert self.complete(*command, "pho") == [("file", "pho")], command
        for command in (
            ["sample"],
            ["inspect"],
            ["check-data"],
            ["import-weights"],
            ["import-weights", "-o"],
        ):
            assert self.complete(*command, "pho") == [("file", "pho")], command

    def test_each_part_of_save(self) -> None:
        assert self.complete("run", "--save", "mask,ov") == [("plain", "mask,overlay")]
        found = [value for _, value in self.complete("run", "--save", "mask,")]
        assert "mask,cutout" in found
        assert "mask,mask" not in found

    def test_backends(self) -> None:
        assert self.complete("run", "--backend", "tensorrt-") == [("plain", "tensorrt-rtx")]

    def test_the_help_says_how(self) -> None:
        assert (
            'eval "$(_UNET_BATCH_COMPLETE=bash_source unet-batch)"' in CliRunner().invoke(main, ["-h"]).output
        )
