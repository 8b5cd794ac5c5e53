"""`unet-batch bench` as a person meets it."""

from __future__ import annotations

import functools
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.conftest import ROOT
from tests.helpers.bench import FakeChild, write_photos
from unet_batch.bench import compare
from unet_batch.cli import main
from unet_batch.errors import BackendError

command = importlib.import_module("unet_batch.cli.bench")  # whose name in the package is its command
QUICK = ("--seconds", "0.01", "--rounds", "2")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    write_photos(tmp_path / "photos")
    return tmp_path / "photos"


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    (tmp_path / "disk").mkdir()
    return tmp_path / "disk"


@pytest.fixture(autouse=True)
def _backends_of_a_test(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeChild.reset()
    monkeypatch.setattr(compare, "opened", functools.partial(compare.opened, open_child=FakeChild))


def invoked(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["bench", *map(str, arguments), *QUICK])


def test_a_table_of_all_backends_at_all_levels(photos: Path) -> None:
    done = invoked(photos)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert f"photos    3 pictures of {photos}" in lines
    assert "skipped   tensorrt: tensorrt is missing in a test" in done.stdout
    for title in ("engine alone", "pipeline", "end to end"):
        at = [line.strip() for line in lines].index(title)
        assert lines[at + 1].split()[:3] == ["torch-cpu", "fp32", "*"]
        assert lines[at + 2].split()[:2] == ["openvino", "fp32"]
    assert "2.0 GFLOP a picture" in done.stdout
    assert lines[-1].startswith("verdict   fastest")


def test_only_what_is_named_is_measured(photos: Path) -> None:
    done = invoked(photos, "--backend", "openvino")
    assert done.exit_code == 0
    assert "torch-cpu fp32 *" not in done.stdout
    assert "auto      takes torch-cpu fp32, which was not measured" in done.stdout
    assert "skipped" not in done.stdout


def test_what_is_named_and_cannot_run_is_an_error(photos: Path) -> None:
    done = invoked(photos, "--backend", "tensorrt")
    assert done.exit_code == 2
    assert done.stderr == "error: tensorrt is missing in a test\n hint: install tensorrt\n"


def test_several_processes_stand_beside_one(photos: Path, tmp_path: Path) -> None:
    plot = tmp_path / "bench.png"
    done = invoked(photos, "--backend", "torch", "--devices", "cpu:2", "--plot", plot)
    assert done.exit_code == 0, done.output
    assert "measured  torch-cpu fp32, cpu:2 · " in done.stdout
    rows = [line.split()[:3] for line in done.stdout.splitlines() if line.startswith("  torch")]
    assert rows == [["torch-cpu", "fp32", "*"]] * 3 + [["torch-cpu", "fp32,", "cpu:2"]]
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("devices", "said"),
    [("gpu", "auto, numbers of GPUs or cpu:N expected"), ("auto", "--devices auto: no NVIDIA GPU is here")],
)
def test_devices_that_are_none_are_an_error(
    photos: Path, devices: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unet_batch.gpu.driver", lambda: None)
    done = invoked(photos, "--devices", devices)
    assert (done.exit_code, said in " ".join(done.stderr.split())) == (2, True), done.stderr
    assert FakeChild.opened == []


@pytest.mark.parametrize("rate", ["0", "-5", "fast", "nan", "inf", "1e9", ""])
def test_a_rate_that_is_none_is_an_error(photos: Path, rate: str) -> None:
    done = invoked(photos, "--simulate", rate)
    assert done.exit_code == 2
    assert f"{rate!r}: pictures a second expected, from 0.01 to 1,000,000" in " ".join(done.stderr.split())
    assert FakeChild.opened == []


@pytest.mark.parametrize("other", [("--backend", "torch"), ("--device", "cuda:1")])
def test_what_is_simulated_runs_nowhere(photos: Path, other: tuple[str, str]) -> None:
    done = invoked(photos, "--simulate", "5000", *other)
    assert done.exit_code == 2
    assert done.stderr.splitlines()[0] == f"error: --simulate 5000 contradicts {' '.join(other)}"
    assert FakeChild.opened == []


def test_simulated_devices_stand_side_by_side(photos: Path) -> None:
    (photos / "1.jpg").write_bytes(b"no picture")
    done = invoked(
        photos, "--simulate", "1e4", "--simulate", "2e3", "--simulate", "10000", "-m", "fast", "-m", "fine"
    )
    assert done.exit_code == 0, done.output
    assert FakeChild.opened == ["10000/s", "2000/s"] * 2
    text = " ".join(done.stdout.split())
    assert f"note left out: {photos / '1.jpg'}" in text
    assert "note simulated: a device that only sleeps took the place of the network" in text
    assert "verdict fastest" in text
    assert " auto " not in text


def test_photos_that_are_all_damaged_are_an_error_there_too(photos: Path, disk: Path) -> None:
    for photo in photos.iterdir():
        photo.write_bytes(b"no picture")
    done = invoked(photos, "--simulate", "5000", "-o", disk)
    assert (done.exit_code, "none of 3 pictures can be decoded" in done.stderr) == (2, True)
    assert list(disk.iterdir()) == []


def test_models_stand_side_by_side(photos: Path) -> None:
    done = invoked(photos, "-m", "fast", "-m", "fine", "--backend", "torch")
    assert "fast, torch-cpu fp32 *" in done.stdout
    assert "fine, torch-cpu fp32 *" in done.stdout
    assert "auto      takes torch-cpu fp32 for fine, the only one that can run" in done.stdout


def test_without_a_source_scenes_are_drawn(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "DRAWN", 1)
    monkeypatch.setattr(command, "DRAWN_SIZE", (64, 96))
    done = invoked("--backend", "torch", "-o", disk)
    assert done.exit_code == 0, done.output
    assert "photos    1 drawn scenes of 64x96" in done.stdout
    assert list(disk.iterdir()) == []


def test_a_damaged_photo_stops_nothing(photos: Path) -> None:
    (photos / "1.jpg").write_bytes(b"no picture")
    done = invoked(photos)
    assert done.exit_code == 0
    assert f"note      left out: {photos / '1.jpg'}" in done.stdout.replace("\n          ", " ")


def test_of_many_photos_some_are_taken_over_all_of_the_folder(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_photos(photos, 9)
    monkeypatch.setattr(command, "MOST_PHOTOS", 4)
    assert f"photos    3 of 9 pictures of {photos}" in invoked(photos).stdout


@pytest.mark.parametrize("words", [(), ("--simulate", "1e5", "--simulate", "1e6")])
def test_ctrl_c_prints_what_has_been_measured(
    photos: Path, disk: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    FakeChild.fail = {8: KeyboardInterrupt()}  # in the second round
    done = invoked(photos, "-o", disk, "--json", tmp_path / "bench.json", *words)
    assert done.exit_code == 130
    assert "stopped   before all rounds were done" in done.stdout
    assert "end to end" in done.stdout
    document = json.loads((tmp_path / "bench.json").read_text())
    assert document["interrupted"] is True
    assert [len(each["levels"]["engine"]["rounds"]) for each in document["entries"]] == [2, 1]
    assert list(disk.iterdir()) == []
    assert len(FakeChild.closed) == 2


def test_ctrl_c_before_the_first_round_says_so(photos: Path) -> None:
    FakeChild.fail = {1: KeyboardInterrupt()}
    done = invoked(photos)
    assert done.exit_code == 130
    assert "stopped" in done.stdout


def test_a_backend_that_fails_on_the_way_is_told_and_the_folder_is_gone(photos: Path, disk: Path) -> None:
    FakeChild.fail = {4: BackendError("it burned down")}
    done = invoked(photos, "-o", disk)
    assert done.exit_code == 1
    assert "note      openvino fp32: measured no further: it burned down" in done.stdout
    assert list(disk.iterdir()) == []


def test_the_folder_is_gone_after_an_error_that_nobody_foresaw(photos: Path, disk: Path) -> None:
    FakeChild.fail = {2: ZeroDivisionError()}
    assert isinstance(invoked(photos, "-o", disk).exception, ZeroDivisionError)
    assert list(disk.iterdir()) == []
    assert len(FakeChild.closed) == 2


def test_json_on_stdout_is_alone(photos: Path) -> None:
    done = invoked(photos, "--json", "-")
    assert [each["backend"]["name"] for each in json.loads(done.stdout)["entries"]] == [
        "torch-cpu",
        "openvino",
    ]
    assert "verdict" in done.stderr


def test_files_are_written(photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra train is not installed")
    files = [tmp_path / name for name in ("a.json", "a.md", "a.png")]
    done = invoked(photos, "--json", files[0], "--markdown", files[1], "--plot", files[2])
    assert done.exit_code == 0
    assert files[1].read_text().count("| engine alone |") == 2
    assert files[2].read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_measured_is_said_before_anything_is_opened(photos: Path, tmp_path: Path) -> None:
    done = invoked(photos, "-o", tmp_path / "nowhere")
    assert (done.exit_code, "nowhere: no such folder" in done.stderr) == (2, True)
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.mp4").write_bytes(b"")
    done = invoked(tmp_path / "clips")
    assert (done.exit_code, "holds clips only" in done.stderr) == (2, True)
    assert FakeChild.opened == []


def test_nothing_of_it_loads_torch() -> None:
    code = (
        "import sys\n"
        "import unet_batch.bench.compare, unet_batch.bench.plot, unet_batch.bench.report\n"
        "import unet_batch.cli.bench, unet_batch.cli.bench_summary\n"
        "print([name for name in ('torch', 'matplotlib', 'onnx', 'openvino') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_nothing_simulated_loads_torch(photos: Path, tiny: str) -> None:
    code = (
        "import json, sys\n"
        "from unet_batch.bench.measure import measure_level, open_subject\n"
        "kept = {}\n"
        "open_subject(sys.argv[1].encode(), None, kept)\n"
        "measure_level(json.dumps({'level': 'files', 'seconds': 0.01}).encode(), None, kept)\n"
        "print([name for name in ('torch', 'matplotlib', 'onnx', 'openvino') if name in sys.modules])"
    )
    paths = {"model": tiny, "photos": [str(photos / "0.jpg")], "folder": str(photos.parent)}
    nothing = {"devices": [], "size": None, "device": None, "batch_size": None}
    asked = json.dumps({**paths, **nothing, "rate": 5000})
    done = subprocess.run(
        [sys.executable, "-c", code, asked], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


class TestItself:
    """With a process of its own and PyTorch in it."""

    @pytest.fixture(autouse=True)
    def _real(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.undo()

    def test_measures_a_checkpoint(self, photos: Path, tiny: str, disk: Path) -> None:
        words = ("-m", tiny, "--backend", "torch", "--devices", "cpu:2", "-o", disk, "--json", "-")
        done = invoked(photos, *words)
        assert done.exit_code == 0, done.output
        entry, shared = json.loads(done.stdout)["entries"]
        assert (shared["devices"], shared["levels"]["engine"], shared["error"]) == ("cpu:2", None, "")
        assert shared["levels"]["files"]["pictures_per_second"] > 0
        assert (entry["backend"]["name"], entry["auto"], entry["error"]) == ("torch-cpu", True, "")
        assert entry["levels"]["files"]["pictures_per_second"] > 0
        assert entry["gflop"] > 0
        assert entry["memory_bytes"] is None or entry["memory_bytes"] > 50e6
        assert list(disk.iterdir()) == []

    def test_measures_all_but_a_network(self, photos: Path, tiny: str, disk: Path) -> None:
        words = ("-m", tiny, "--simulate", "4000", "--devices", "cpu:2", "-o", disk, "--json", "-")
        done = invoked(photos, *words)
        assert done.exit_code == 0, done.output
        entry, shared = json.loads(done.stdout)["entries"]
        for each in (entry, shared):
            assert (each["backend"]["name"], each["simulated"], each["error"]) == ("simulated", 4000, "")
            assert 0 < each["levels"]["files"]["pictures_per_second"] < 2 * 4000
        assert (entry["devices"], shared["devices"], entry["auto"]) == (None, "cpu:2", False)
        assert 0 < entry["levels"]["engine"]["pictures_per_second"] <= 4000
        assert list(disk.iterdir()) == []
