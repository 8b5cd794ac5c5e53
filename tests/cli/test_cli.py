"""The command line as a person meets it: in a process of its own, in a pipe and on a terminal."""

from __future__ import annotations

import io
import json
import os
import random
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from tests.helpers.command import unet_batch
from tests.helpers.processes import Forked, command_line, has_files, in_the_background, killed
from tests.helpers.systems import needs_full_device, needs_posix
from tests.helpers.tiny import tiny_model, tiny_spec
from tests.helpers.waiting import PATIENCE
from unet_batch.cli import main
from unet_batch.cli.text import clock, left_out, plural, printable, shown, some
from unet_batch.model import checkpoint
from unet_batch.model.zoo import BUNDLED
from unet_batch.version import __version__

COMMANDS = [
    [],
    ["run"],
    ["merge"],
    ["sample"],
    ["doctor"],
    ["build-engine"],
    ["inspect"],
    ["import-weights"],
    ["check-data"],
    ["evaluate"],
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    done = unet_batch("sample", folder / "demo", "--photos", "3", "--size", "160x240")
    assert done.returncode == 0, done.stderr
    return folder / "demo" / "photos"


class TestStartUp:
    @pytest.mark.parametrize(
        "arguments", [["--help"], ["--version"], ["run", "--help"], ["sample", "--help"]], ids=" ".join
    )
    def test_loads_nothing_heavy(self, arguments: list[str]) -> None:
        code = (
            "import sys\nfrom unet_batch.cli import main\n"
            f"try: main({arguments!r})\nexcept SystemExit as e: assert not e.code, e.code\n"
            "print('LOADED', sorted({'torch', 'numpy', 'cv2', 'av', 'tensorrt', 'PIL', 'rich'} & "
            "set(sys.modules)))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "LOADED []"

    @needs_posix
    def test_help_answers_at_once(self) -> None:
        """Processor seconds, the best of five: the wall clock would measure whatever else the machine is
        doing.
        """
        times = []
        for _ in range(5):
            before = os.times()
            assert unet_batch("--help").returncode == 0
            after = os.times()
            times.append(
                after.children_user + after.children_system - before.children_user - before.children_system
            )
        assert min(times) < 0.3, times


class TestHelp:
    @pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command) or "unet-batch")
    def test_has_an_example_and_fits_the_screen(self, command: list[str]) -> None:
        text = CliRunner().invoke(main, [*command, "--help"], terminal_width=110).output
        assert re.search(r"^ +unet-batch ", text, re.MULTILINE), "an example"
        assert max(map(len, text.splitlines())) <= 110

    def test_version(self) -> None:
        assert CliRunner().invoke(main, ["--version"]).output == f"unet-batch {__version__}\n"


class TestRun:
    def test_says_what_it_does_and_does_it(self, photos: Path, tiny: str, tmp_path: Path) -> None:
        done = unet_batch("run", photos, "-o", tmp_path / "out", "-m", tiny, "--overlay", "--device", "cpu")
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        if hint := [line for line in lines if "faster on this CPU: unet-batch build-engine" in line]:
            lines.remove(hint[0])  # where OpenVINO is installed
        assert re.match(r"loading   .*tiny.* \.\.\.$", lines[0])
        assert lines[1].startswith("output")
        assert str(tmp_path / "out") in lines[1] or "out" in lines[1]
        assert "3 pictures" in lines[2]
        assert lines[3].startswith("model     tiny · 0.0 M parameters · 32x48 · class0 · sha256 ")
        assert re.match(r"backend   torch-cpu (bf16|fp32) \(as asked; .+\)", lines[4])
        assert lines[5].startswith("batch     1 x ")
        assert lines[6:8] == ["", "3 done · 0 failed"], "three lines say how it went"
        assert re.fullmatch(
            r"\d+\.\d s · \d+\.\d pictures/s · slowest stage: \w+ \(busy \d+% of the time\)", lines[8]
        )
        assert len(lines) == 10
        assert lines[-1].startswith("All done. Results in ")
        assert lines[-1].endswith("; nothing failed, nothing is left.")
        for name in ("masks/scene_0000.png", "overlays/scene_0002.jpg", "run.json"):
            assert (tmp_path / "out" / name).is_file()

    def test_says_the_terms_of_the_model_before_it_begins(self, photos: Path, tmp_path: Path) -> None:
        path, spec = str(tmp_path / "m.safetensors"), tiny_spec(terms="non-commercial: drawn for a test")
        checkpoint.save(path, tiny_model(spec), spec)
        arguments = ["run", str(photos), "-o", str(tmp_path / "out"), "-m", path, "--device", "cpu"]
        lines = CliRunner().invoke(main, arguments).stdout.splitlines()
        assert lines[3].startswith("model     tiny · ")
        assert lines[4] == "terms     non-commercial: drawn for a test"
        assert lines[5].startswith("backend   ")
        report = json.loads((tmp_path / "out/run.json").read_text())
        assert report["model"]["terms"] == spec.terms
        assert CliRunner().invoke(main, [*arguments, "-q", "--overwrite"]).output == ""

    def test_of_several_models_the_mean(self, photos: Path, tiny: str, tmp_path: Path) -> None:
        files = [tiny, str(tmp_path / "wide.safetensors"), str(tmp_path / "road.safetensors")]
        for path, changes in (
            (files[1], {"name": "wide", "size": (64, 96), "threshold": 0.7, "terms": "for a test"}),
            (files[2], {"name": "road", "classes": 3}),
        ):
            spec = tiny_spec(**changes)
            checkpoint.save(path, tiny_model(spec), spec)

        def run(*models: str, out: str) -> Result:
            named = [word for model in models for word in ("-m", model)]
            command = ["run", str(photos), "-o", str(tmp_path / out), *named, "--device", "cpu"]
            return CliRunner().invoke(main, command, catch_exceptions=False)

        done = run(*files[:2], out="out")
        assert done.exit_code == 0, done.stderr
        lines = done.stdout.splitlines()
        assert [line[:7] for line in lines[:2]] == ["loading"] * 2
        assert lines[4].startswith("model     tiny · 0.0 M parameters · 32x48 · class0 · sha256 ")
        assert lines[5].startswith("model     wide · 0.0 M parameters · 64x96 · class0 · sha256 ")
        assert lines[6] == "averaged  the mean of the 2 models' probabilities, threshold 0.6"
        assert lines[7] == "terms     wide: for a test"
        report = json.loads((tmp_path / "out/run.json").read_text())
        members = [checkpoint.identify(path).as_dict() for path in files[:2]]
        assert report["model"] == {
            "name": "tiny + wide",
            "classes": ["class0"],
            "colours": [[0, 80, 200]],
            "terms": "wide: for a test",
            "members": members,
        }
        assert [member["input_size"] for member in report["backend"]["members"]] == [[32, 48], [64, 96]]
        assert "0 done" in run(*files[1::-1], out="out").stdout, "in any order"
        refused = run(files[0], files[2], out="other")
        assert refused.exit_code == 2
        assert "tiny.safetensors and " in refused.stderr
        assert "their classes are class0 and class0, class1, class2" in refused.stderr
        assert "two are the same" in run(tiny, tiny, out="other").stderr

    def test_says_at_once_what_it_loads(self, photos: Path, tiny: str, tmp_path: Path) -> None:
        """Before the sources are looked at, and long before PyTorch is there."""
        code = (
            "import sys\nfrom unet_batch.cli import main\nfrom unet_batch.cli.screen import Screen\n"
            "heavy = {'torch', 'numpy', 'cv2', 'av'}\n"
            "Screen.loading = lambda self, model: sys.exit(f'{model} {sorted(heavy & set(sys.modules))}')\n"
            f"main(['run', {str(photos)!r}, '-m', 'fast'])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.stderr == "('fast',) []\n"
        code = (
            "import os, sys\nfrom unet_batch.cli import main\n"
            "def hook(event, values):\n"
            "    if event == 'import' and values[0] in ('torch', 'numpy') and not os.fstat(1).st_size:\n"
            "        os._exit(9)\n"
            "sys.addaudithook(hook)\n"
            f"main(['run', {str(photos)!r}, '-o', {str(tmp_path / 'out')!r}, '--dry-run'])"
        )
        with (tmp_path / "said.txt").open("w") as file:
            done = subprocess.run([sys.executable, "-c", code], stdout=file, check=False)
        assert done.returncode == 0, "it imports what is heavy before it says what it does"
        first = (tmp_path / "said.txt").read_text().splitlines()[0]
        assert first == f"loading   default ({BUNDLED['default'].purpose}) ..."

    @pytest.mark.parametrize("command", ["run", "watch"])
    def test_a_mistyped_path_is_told_before_anything_is_loaded(
        self, photos: Path, command: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(photos.parent)
        result = CliRunner().invoke(main, [command, "fotos"])
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr == "error: fotos does not exist\n hint: there is photos\n"

    def test_says_where_results_go(self, photos: Path, tiny: str, tmp_path: Path) -> None:
        for name in ("scene_0000.jpg", "scene_0001.jpg"):
            (tmp_path / "home" / name).parent.mkdir(exist_ok=True)
            (tmp_path / "home" / name).write_bytes((photos / name).read_bytes())
        (tmp_path / "home/more").mkdir()
        (tmp_path / "home/more/x.jpg").write_bytes((photos / "scene_0002.jpg").read_bytes())
        for named, output in (("scene_0000.jpg", "segmented"), ("more", "more-segmented")):
            done = unet_batch("run", named, "-m", tiny, cwd=tmp_path / "home")
            assert done.returncode == 0, done.stderr
            assert f"output    {output} · mask\n" in done.stdout
            assert f"All done. Results in {output};" in done.stdout
        assert (tmp_path / "home/segmented/masks/scene_0000.png").exists()
        assert sorted(os.listdir(tmp_path)) == sorted(["home", os.path.basename(tiny)])

    def test_plain_text_in_a_pipe(self, photos: Path, tiny: str, tmp_path: Path) -> None:
        done = unet_batch("run", photos, "-o", tmp_path / "out", "-m", tiny)
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", done.stdout + done.stderr)

    @needs_posix
    def test_a_bar_on_a_terminal(
        self, photos: Path, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import pty

        monkeypatch.setenv("TERM", "xterm")
        parent, child = pty.openpty()
        terminal = Path(os.ttyname(child))
        command = ("run", str(photos), "-o", str(tmp_path / "out"), "-m", tiny)
        process = Forked(command_line, *command, output=terminal, errors=terminal)
        screen = b""
        while process.poll() is None or select.select([parent], [], [], 0)[0]:
            if select.select([parent], [], [], 0.02)[0]:
                screen += os.read(parent, 65536)
        os.close(child)
        os.close(parent)
        assert process.returncode == 0
        assert b"\x1b[" in screen
        assert b"3/3" in screen

    def test_json_on_stdout_alone(self, photos: Path, tiny: str, tmp_path: Path) -> None:
        done = unet_batch("run", photos, "-o", tmp_path / "out", "-m", tiny, "--json")
        report = json.loads(done.stdout)
        assert report == json.loads((tmp_path / "out/run.json").read_text())
        assert (report["status"], report["done"]) == ("done", 3)
        assert report["model"]["sha256"]
        assert "3 pictures" in done.stderr

    def test_quiet_says_nothing_but_failures(self, photos: Path, tiny: str, tmp_path: Path) -> None:
        (tmp_path / "bad.png").write_bytes(b"")
        done = unet_batch("run", photos, tmp_path / "bad.png", "-o", tmp_path / "out", "-m", tiny, "-q")
        assert done.returncode == 1
        assert done.stdout == ""
        assert "bad.png: an empty file" in done.stderr

    def test_verbose_names_each_picture(self, photos: Path, tiny: str, tmp_path: Path) -> None:
        done = unet_batch("run", photos, "-o", tmp_path / "out", "-m", tiny, "-v")
        assert len(re.findall(r"^done +.*scene_000\d\.jpg$", done.stdout, re.MULTILINE)) == 3
        assert "<- bottleneck" in done.stdout, "a table of the stages"

    def test_dry_run_writes_nothing(self, photos: Path, tiny: str, tmp_path: Path) -> None:
        done = unet_batch("run", photos, "-o", tmp_path / "out", "-m", tiny, "--dry-run")
        assert done.returncode == 0
        assert "3 pictures would be segmented, nothing was written" in done.stdout
        assert "masks/scene_0000.png" in done.stdout
        assert not (tmp_path / "out").exists()

    def test_nothing_left_to_do(self, photos: Path, tiny: str, tmp_path: Path) -> None:
        unet_batch("run", photos, "-o", tmp_path / "out", "-m", tiny)
        done = unet_batch("run", photos, "-o", tmp_path / "out", "-m", tiny)
        assert done.returncode == 0
        assert "3 already done" in done.stdout
        assert re.search(r"^0 done .* skipped \(done before\)\nNothing to do: ", done.stdout, re.MULTILINE)

    def test_a_failure_is_shown_with_its_reason(self, photos: Path, tiny: str, tmp_path: Path) -> None:
        (tmp_path / "esc\x1b[31m.jpg").write_bytes(b"\xff\xd8\xff")
        done = unet_batch("run", photos, tmp_path, "-o", tmp_path / "out", "-m", tiny)
        assert done.returncode == 1
        assert "failed    " in done.stderr
        assert "\x1b" not in done.stderr + done.stdout, "a file name must not steer the terminal"
        assert "errors.jsonl" in done.stdout

    def test_a_terminal_that_lacks_the_characters_of_a_name(
        self, photos: Path, tiny: str, tmp_path: Path
    ) -> None:
        (tmp_path / "Straße ☀.jpg").write_bytes((photos / "scene_0000.jpg").read_bytes())
        command = [
            sys.executable,
            "-m",
            "unet_batch",
            "run",
            str(tmp_path),
            "-o",
            str(tmp_path / "out"),
            "-m",
            tiny,
            "-v",
        ]
        environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=PATIENCE)
        assert (done.returncode, done.stderr) == (0, "")
        assert "Stra\\xdfe \\u2600.jpg" in done.stdout
        assert (tmp_path / "out/masks/Straße ☀.png").is_file()

    def test_lists_and_globs(self, photos: Path, tiny: str, tmp_path: Path) -> None:
        (tmp_path / "list.txt").write_text(f"# two\n{photos}/scene_0000.jpg\n{photos}/scene_0001.jpg\n")
        done = unet_batch(
            "run",
            f"@{tmp_path / 'list.txt'}",
            f"{photos}/*2.jpg",
            "-o",
            tmp_path / "out",
            "-m",
            tiny,
            "--json",
        )
        assert json.loads(done.stdout)["done"] == 3

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["nowhere"], "error: nowhere does not exist"),
            (["{photos}", "-m", "none.safetensors"], "error: none.safetensors: no such model file"),
            (["{photos}", "--device", "warp"], "not a device PyTorch knows"),
            (["{photos}", "--threshold", "nan"], "threshold nan: above 0 and up to 1"),
            (["{photos}", "--threshold", "2"], "2.0 is not in the range 0<x<=1"),
            (["{photos}", "--save", "mask,polygons"], "'polygons' is not one of mask, overlay"),
            (["{photos}", "--backend", "onnx"], "is not one of 'auto', 'tensorrt'"),
            (["{photos}", "--batch-size", "0"], "0 is not in the range"),
            ([], "Missing argument 'SOURCE...'"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_wrong_usage_is_exit_code_2(
        self, photos: Path, tmp_path: Path, arguments: list[str], message: str
    ) -> None:
        done = unet_batch("run", *(part.format(photos=photos) for part in arguments), cwd=tmp_path)
        assert done.returncode == 2
        assert message in done.stderr
        assert "Traceback" not in done.stderr
        assert not list(tmp_path.iterdir())

    @needs_posix
    @pytest.mark.parametrize(
        ("number", "code", "word"), [(signal.SIGINT, 130, "Interrupted"), (signal.SIGTERM, 143, "Stopped by")]
    )
    def test_ctrl_c_and_sigterm_are_resumable(
        self, photos: Path, tiny: str, tmp_path: Path, number: signal.Signals, code: int, word: str
    ) -> None:
        with started(many(photos, tmp_path, 3000), tmp_path / "out", tiny) as process:
            process.send_signal(number)
            stdout, stderr = process.communicate(timeout=PATIENCE)
        assert process.returncode == code
        assert "Traceback" not in stderr
        assert "what has begun is finished; again to quit now" in stderr
        assert re.search(rf"^{word}.*; [\d,]+ left\. .*run the same command to go on", stdout, re.MULTILINE)
        report = json.loads((tmp_path / "out/run.json").read_text())
        assert (report["status"], report["signal"]) == ("interrupted", number.name)
        masks = len(list((tmp_path / "out/masks").glob("*.png")))
        assert 0 < masks == report["done"] < 3000
        assert not list((tmp_path / "out").rglob("*.part"))
        done = unet_batch("run", tmp_path / "many", "-o", tmp_path / "out", "-m", tiny, "--dry-run")
        assert f"{masks:,} already done" in done.stdout, "every mask is on record"

    @needs_posix
    def test_a_second_ctrl_c_quits_at_once(self, photos: Path, tiny: str, tmp_path: Path) -> None:
        with started(many(photos, tmp_path, 3000), tmp_path / "out", tiny) as process:
            process.send_signal(signal.SIGSTOP)  # so that nothing can end between the two
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGCONT)
            _, stderr = process.communicate(timeout=PATIENCE)
        assert process.returncode in (130, 143)
        assert "Traceback" not in stderr
        assert json.loads((tmp_path / "out/run.json").read_text())["status"] == "running"
        for path in (tmp_path / "out/masks").glob("*.png"):
            with Image.open(path) as image:
                assert np.array(image).shape == (160, 240)
        assert (
            unet_batch("run", tmp_path / "many", "-o", tmp_path / "out", "-m", tiny, "--dry-run").returncode
            == 0
        )

    @needs_posix
    def test_a_job_in_the_background_ignores_ctrl_c(self, photos: Path, tiny: str, tmp_path: Path) -> None:
        folder = many(photos, tmp_path, 100)
        with started(folder, tmp_path / "out", tiny, in_the_background) as process:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=PATIENCE)
        assert process.returncode == 0

    @pytest.mark.slow
    @needs_posix
    def test_killed_at_random_moments(self, photos: Path, tiny: str, tmp_path: Path) -> None:
        """The real command with a real network; `tests/run/test_resume.py` does it fifty times with a fake
        one.
        """
        count, out, choose = 400, tmp_path / "out", random.Random(2)
        folder = many(photos, tmp_path, count)
        command = ("run", str(folder), "-o", str(out), "-m", tiny, "--device", "cpu")
        for _ in range(8):
            there = len(list((out / "masks").glob("*.png")))
            death = (killed, partial(has_files, out / "masks", there + 1), choose.uniform(0, 0.05))
            assert Forked(*death, command_line, *command).wait(PATIENCE) == -signal.SIGKILL
        assert 8 <= len(list((out / "masks").glob("*.png"))) < count, "each kill should hit something"
        for name in (out, tmp_path / "clean"):
            assert unet_batch("run", folder, "-o", name, "-m", tiny, "--device", "cpu").returncode == 0
        masks, clean = (
            {path.name: path.read_bytes() for path in (name / "masks").iterdir()}
            for name in (out, tmp_path / "clean")
        )
        assert masks == clean
        lines = [
            line for line in (out / "manifest.jsonl").read_text().splitlines() if '"status":"done"' in line
        ]
        assert len(lines) == len({json.loads(line)["key"] for line in lines}) == count

    def test_says_why_what_is_done_again(self, photos: Path, tiny: str, tmp_path: Path) -> None:
        (tmp_path / "in").mkdir()
        for path in photos.iterdir():
            (tmp_path / "in" / path.name).write_bytes(path.read_bytes())
        command = ("run", tmp_path / "in", "-o", tmp_path / "out", "-m", tiny)
        unet_batch(*command)
        (tmp_path / "out/masks/scene_0000.png").unlink()
        os.utime(tmp_path / "in/scene_0001.jpg", (1, 1))
        done = unet_batch(*command)
        assert re.search(
            r"^resume +1 changed, 1 with outputs gone or cut short, 1 already done$",
            done.stdout,
            re.MULTILINE,
        )
        refused = unet_batch(*command, "--threshold", "0.9")
        assert refused.returncode == 2
        assert re.search(
            r"^error: .*out holds outputs of 3 items by model tiny \(sha256 .{12}\), threshold 0.5, "
            r"32x48\. This run would use model tiny .*0.9",
            refused.stderr,
        )
        assert re.search(
            r"^ hint: choose another folder with -o, or redo them with --overwrite$",
            refused.stderr,
            re.MULTILINE,
        )

    def test_events_on_stdout(self, photos: Path, tiny: str, tmp_path: Path) -> None:
        done = unet_batch("run", photos, "-o", tmp_path / "out", "-m", tiny, "--log-json", "-")
        events = [json.loads(line)["event"] for line in done.stdout.splitlines()]
        assert events == ["start", "item", "item", "item", "end"]
        assert "All done" in done.stderr

    def test_events_in_a_file_are_added(self, photos: Path, tiny: str, tmp_path: Path) -> None:
        log = tmp_path / "log.jsonl"
        for _ in range(2):
            assert (
                unet_batch("run", photos, "-o", tmp_path / "out", "-m", tiny, "--log-json", log).returncode
                == 0
            )
        events = [json.loads(line) for line in log.read_text().splitlines()]
        assert [event["event"] for event in events] == [
            "start",
            "item",
            "item",
            "item",
            "end",
            "start",
            "end",
        ]
        assert events[5]["states"] == {"done": 3}

    @needs_full_device
    def test_events_that_cannot_be_written_do_not_end_the_run(
        self, photos: Path, tiny: str, tmp_path: Path
    ) -> None:
        done = unet_batch("run", photos, "-o", tmp_path / "out", "-m", tiny, "--log-json", "/dev/full")
        assert done.returncode == 0
        assert done.stderr.count("no more events in /dev/full: No space left on device") == 1
        command = f"{sys.executable} -m unet_batch run {photos} -o {tmp_path / 'two'} -m {tiny} --log-json -"
        command += " | head -n 1; exit ${PIPESTATUS[0]}"
        done = subprocess.run(
            ["bash", "-c", command], capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "two/masks/scene_0002.png").exists()

    def test_signal_handlers_are_given_back(self, photos: Path, tiny: str, tmp_path: Path) -> None:
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = [signal.getsignal(number) for number in numbers]
        result = CliRunner().invoke(
            main, ["run", str(photos), "-o", str(tmp_path / "out"), "-m", tiny, "--device", "cpu"]
        )
        assert result.exit_code == 0, result.output
        assert [signal.getsignal(number) for number in numbers] == before

    def test_two_cannot_have_stdout(self, photos: Path, tmp_path: Path) -> None:
        result = CliRunner().invoke(main, ["run", str(photos), "--json", "--log-json", "-"])
        assert (result.exit_code, "both want stdout" in result.output) == (2, True)
        result = CliRunner().invoke(main, ["run", str(photos), "--shard", "9"])
        assert (result.exit_code, "I/N or slurm expected" in result.output) == (2, True)


def many(photos: Path, folder: Path, count: int) -> Path:
    """A folder of links to one photo."""
    (folder / "many").mkdir()
    for index in range(count):
        (folder / f"many/{index}.jpg").symlink_to(photos / "scene_0000.jpg")
    return folder / "many"


@contextmanager
def started(
    folder: Path, out: Path, model: str, program: Callable[..., None] = command_line
) -> Iterator[Forked]:
    """A run that has written something new."""
    before = len(list((out / "masks").glob("*.png")))
    said = [out.with_name(f"{out.name}.{stream}") for stream in ("stdout", "stderr")]
    arguments = ("run", str(folder), "-o", str(out), "-m", model, "--device", "cpu")
    process = Forked(program, *arguments, output=said[0], errors=said[1])
    try:
        while len(list((out / "masks").glob("*.png"))) <= before:
            time.sleep(0.005)
            assert process.poll() is None
        yield process
    finally:
        process.kill()
        process.wait()


class TestSample:
    def test_photos_and_masks(self, photos: Path) -> None:
        assert sorted(path.name for path in photos.iterdir()) == [f"scene_000{i}.jpg" for i in range(3)]
        mask = np.array(Image.open(photos.parent / "masks/scene_0000.png"))
        assert mask.shape == (160, 240)
        assert set(np.unique(mask)) == {0, 255}

    @pytest.mark.parametrize("size", ["640", "10x10", "axb", "99999x99999"])
    def test_a_wrong_size(self, tmp_path: Path, size: str) -> None:
        result = CliRunner().invoke(main, ["sample", str(tmp_path), "--size", size])
        assert result.exit_code == 2
        assert "size" in result.output or "side" in result.output

    def test_a_file_in_the_way(self, tmp_path: Path) -> None:
        (tmp_path / "x").write_text("")
        result = CliRunner().invoke(main, ["sample", str(tmp_path / "x"), "--size", "64x64"])
        assert result.exit_code == 2
        assert "error: " in result.output


def test_words_and_numbers() -> None:
    assert [clock(value) for value in (7.31, 245, 7380)] == ["7.3 s", "4 min 05 s", "2 h 03 min"]
    assert [plural(count, "picture") for count in (0, 1, 2)] == ["pictures", "picture", "pictures"]
    assert left_out({".txt": 2, "": 1}) == "3 other files left out: 2 .txt, 1 without extension"
    assert left_out({}) == ""
    assert [some("abcde"[:count]) for count in (1, 3, 4)] == ["a", "a, b, c", "a, b, c and 1 more"]
    assert some(["a", "b"], 1200) == "a, b and 1,198 more"
    assert shown("rtsp://admin:secret@10.0.0.5/cam") == "rtsp://10.0.0.5/cam"
    assert printable("a\nb\x1b[0m\udcff é") == "a\\nb\\x1b[0m\\udcff é"


def test_the_live_bars_of_a_run(tmp_path: Path) -> None:
    """What only a terminal shows: a bar for the items, and one for the frames of the clip at work."""
    from rich.console import Console

    from unet_batch.cli.progress import RunProgress
    from unet_batch.cli.screen import Screen
    from unet_batch.run.options import RunOptions
    from unet_batch.run.plan import prepare
    from unet_batch.types import Failure, Item

    (tmp_path / "a.jpg").touch()
    (tmp_path / "b.mp4").touch()
    plan = prepare(RunOptions((str(tmp_path),)))
    screen = Screen(quiet=False, verbose=False, to_stderr=False)
    screen.out = Console(file=io.StringIO(), force_terminal=True, width=120)
    clip = Item("b.mp4", "b", is_clip=True)
    progress = RunProgress(screen)
    with closing(progress):
        for _ in range(2):  # `watch` begins more than once
            progress.start(plan)
            progress.advance(
                Item("a.jpg", "a"), Failure("a.jpg", "decode", "ImageError", "a.jpg: broken", "mend it")
            )
            for total in (9, None):
                for done in (3, 4):
                    progress.frame(clip, done, total)
                    progress.bar.refresh()
            progress.advance(clip, None)
            progress.frame(Item("rtsp://admin:secret@camera", "c", is_clip=True), 1, None)
            progress.bar.refresh()
        printed = screen.out.file.getvalue()  # type: ignore[attr-defined]
    assert "b.mp4" in printed
    assert "3/9" in printed
    assert "s left" in printed
    assert "frames/s" in printed
    assert "4/4" in printed
    assert "2 failed" in printed
    assert "camera" in printed
    assert "secret" not in printed
