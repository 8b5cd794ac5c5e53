"""The command line as a person meets it: in a process of its own, in a pipe and on a terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from unet_batch.cli import main
from unet_batch.cli.errors import printable
from unet_batch.cli.screen import clock, left_out, plural
from unet_batch.version import __version__

COMMANDS = [
    [],
    ["run"],
    ["sample"],
    ["doctor"],
    ["build-engine"],
    ["inspect"],
    ["import-weights"],
    ["check-data"],
    ["evaluate"],
]


def unet_batch(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "unet_batch", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=100)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    done = unet_batch("sample", folder / "demo", "--photos", "3", "--size", "160x240")
    assert done.returncode == 0, done.stderr
    return folder / "demo" / "photos"


class TestStartUp:
    @pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["run", "--help"], ["sample", "--help"]], ids=" ".join)
    def test_loads_nothing_heavy(self, arguments: list[str]) -> None:
        code = (
            "import sys\nfrom unet_batch.cli import main\n"
            f"try: main({arguments!r})\nexcept SystemExit as e: assert not e.code, e.code\n"
            "print('LOADED', sorted({'torch', 'numpy', 'cv2', 'av', 'tensorrt', 'PIL', 'rich'} & set(sys.modules)))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "LOADED []"

    @pytest.mark.skipif(sys.platform == "win32", reason="needs the processor time of child processes: POSIX only")
    def test_help_answers_at_once(self) -> None:
        """Processor seconds, the best of five: the wall clock would measure whatever else the machine is doing."""
        times = []
        for _ in range(5):
            before = os.times()
            assert unet_batch("--help").returncode == 0
            after = os.times()
            times.append(after.children_user + after.children_system - before.children_user - before.children_system)
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
        assert lines[0].startswith("output")
        assert str(tmp_path / "out") in lines[0] or "out" in lines[0]
        assert "3 pictures" in lines[1]
        assert lines[2].startswith("model     tiny · 0.0 M parameters · 32x48 · class0 · sha256 ")
        assert re.match(r"backend   torch-cpu (bf16|fp32) \(as asked; .+\)", lines[3])
        assert lines[4].startswith("batch     1 x ")
        assert "3 done" in done.stdout
        assert "<- bottleneck" in done.stdout
        assert lines[-1].startswith("All done. Results in ")
        for name in ("masks/scene_0000.png", "overlays/scene_0002.jpg", "run.json"):
            assert (tmp_path / "out" / name).is_file()

    def test_plain_text_in_a_pipe(self, photos: Path, tiny: str, tmp_path: Path) -> None:
        done = unet_batch("run", photos, "-o", tmp_path / "out", "-m", tiny)
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", done.stdout + done.stderr)

    def test_a_bar_on_a_terminal(self, photos: Path, tiny: str, tmp_path: Path) -> None:
        parent, child = pty.openpty()
        command = [sys.executable, "-m", "unet_batch", "run", str(photos), "-o", str(tmp_path / "out"), "-m", tiny]
        with subprocess.Popen(command, stdout=child, stderr=child, env={**os.environ, "TERM": "xterm"}) as process:
            os.close(child)
            screen = b""
            while True:
                try:
                    chunk = os.read(parent, 65536)
                except OSError:  # Linux reports the end of a terminal like this
                    break
                if not chunk:
                    break
                screen += chunk
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
        assert "Nothing to do" in done.stdout

    def test_a_failure_is_shown_with_its_reason(self, photos: Path, tiny: str, tmp_path: Path) -> None:
        (tmp_path / "esc\x1b[31m.jpg").write_bytes(b"\xff\xd8\xff")
        done = unet_batch("run", photos, tmp_path, "-o", tmp_path / "out", "-m", tiny)
        assert done.returncode == 1
        assert "failed    " in done.stderr
        assert "\x1b" not in done.stderr + done.stdout, "a file name must not steer the terminal"
        assert "errors.jsonl" in done.stdout

    def test_a_terminal_that_lacks_the_characters_of_a_name(self, photos: Path, tiny: str, tmp_path: Path) -> None:
        (tmp_path / "Straße ☀.jpg").write_bytes((photos / "scene_0000.jpg").read_bytes())
        command = [sys.executable, "-m", "unet_batch", "run", str(tmp_path), "-o", str(tmp_path / "out"), "-m", tiny, "-v"]
        environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100)
        assert (done.returncode, done.stderr) == (0, "")
        assert "Stra\\xdfe \\u2600.jpg" in done.stdout
        assert (tmp_path / "out/masks/Straße ☀.png").is_file()

    def test_lists_and_globs(self, photos: Path, tiny: str, tmp_path: Path) -> None:
        (tmp_path / "list.txt").write_text(f"# two\n{photos}/scene_0000.jpg\n{photos}/scene_0001.jpg\n")
        done = unet_batch("run", f"@{tmp_path / 'list.txt'}", f"{photos}/*2.jpg", "-o", tmp_path / "out", "-m", tiny, "--json")
        assert json.loads(done.stdout)["done"] == 3

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["nowhere"], "error: nowhere does not exist"),
            (["{photos}", "-m", "none.safetensors"], "error: none.safetensors: no such model file"),
            (["{photos}", "--device", "warp"], "not a device PyTorch knows"),
            (["{photos}", "--threshold", "2"], "threshold 2.0: above 0 and up to 1"),
            (["{photos}", "--save", "mask,polygons"], "'polygons' is not one of mask, overlay"),
            (["{photos}", "--backend", "onnx"], "is not one of 'auto', 'tensorrt'"),
            (["{photos}", "--batch-size", "0"], "0 is not in the range"),
            ([], "Missing argument 'SOURCE...'"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_wrong_usage_is_exit_code_2(self, photos: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
        done = unet_batch("run", *(part.format(photos=photos) for part in arguments), cwd=tmp_path)
        assert done.returncode == 2
        assert message in done.stderr
        assert "Traceback" not in done.stderr
        assert not list(tmp_path.iterdir())

    @pytest.mark.skipif(sys.platform == "win32", reason="needs SIGINT")
    def test_ctrl_c_is_resumable_and_exit_code_130(self, photos: Path, tiny: str, tmp_path: Path) -> None:
        folder = tmp_path / "many"
        folder.mkdir()
        for index in range(3000):
            (folder / f"{index}.jpg").symlink_to(photos / "scene_0000.jpg")
        command = [sys.executable, "-m", "unet_batch", "run", str(folder), "-o", str(tmp_path / "out"), "-m", tiny]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            while not list((tmp_path / "out" / "masks").glob("*.png")):
                time.sleep(0.05)
                assert process.poll() is None
            process.send_signal(signal.SIGINT)
            stdout, stderr = process.communicate(timeout=30)
        assert process.returncode == 130
        assert "Traceback" not in stderr
        assert "run the same command to go on" in stdout
        assert json.loads((tmp_path / "out/run.json").read_text())["status"] == "interrupted"
        assert 0 < len(list((tmp_path / "out/masks").glob("*.png"))) < 3000
        assert not list((tmp_path / "out").rglob("*.part"))


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
    assert printable("a\nb\x1b[0m\udcff é") == "a\\nb\\x1b[0m\\udcff é"
