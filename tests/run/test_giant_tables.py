"""Tables of pictures that memory does not hold are those that they would have if it did."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers.giants import (
    TILE,
    TILES,
    fake,
    peak_of_segmenting,
    read_all_in_bands,
    save,
    segment_slowly,
    smooth_picture,
)
from tests.helpers.processes import Forked
from tests.helpers.runs import half_bright, read, segment, write
from tests.helpers.waiting import PATIENCE, until
from unet_batch.errors import OutputError
from unet_batch.files.outputs import OutputTree
from unet_batch.files.tables import as_csv
from unet_batch.inference.segmenter import Segmenter
from unet_batch.inference.views import ViewOptions
from unet_batch.media import domain
from unet_batch.media.cleanup import Cleanup
from unet_batch.media.measure import Measuring, PixelSize
from unet_batch.run import giant
from unet_batch.run.execute import execute
from unet_batch.run.options import RunOptions
from unet_batch.run.plan import prepare
from unet_batch.testing import FakeBackend, fake_spec
from unet_batch.types import Domain, Item

pytestmark = pytest.mark.usefixtures("no_thread_is_left")

Rows = list[dict[str, str]]
SAVE = ("mask", "stats", "objects")


@pytest.fixture(autouse=True)
def tiny_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """No picture is held by memory, and bands are a row of blocks."""
    read_all_in_bands(monkeypatch)


def rows_of(data: bytes) -> Rows:
    return list(csv.DictReader(io.StringIO(data.decode(), newline="")))


def in_order(rows: Rows) -> Rows:
    """Objects by their last rows, as giants have them."""

    def place(row: dict[str, str]) -> tuple[Any, ...]:
        left, top, height = (int(row[name]) for name in ("left", "top", "height"))
        return top + height, left, top, row["class"]

    return [{**row, "id": str(number)} for number, row in enumerate(sorted(rows, key=place), 1)]


def both_ways(path: str, out: Path, segmenter: Segmenter) -> tuple[dict[str, Rows], dict[str, Rows]]:
    """The tables of a picture that is read in bands, and of the same in memory."""
    tree, result = OutputTree(str(out), SAVE), segmenter.predict(path)
    size = result.prediction.frame.placement.source if result.prediction else (0, 0)
    done = giant.segment(Item(path, "x"), size, segmenter, tree)
    assert done.complete
    assert done.outputs == {kind: Path(tree.path(kind, "x")).stat().st_size for kind in SAVE}
    found = {kind: rows_of(Path(tree.path(kind, "x")).read_bytes()) for kind in SAVE[1:]}
    whole = {
        "stats": rows_of(as_csv("stats", result.stats())),
        "objects": in_order(rows_of(as_csv("objects", result.objects()))),
    }
    return found, whole


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(1, 130), st.integers(1, 130), st.sampled_from([1, 2, 4]), st.booleans(), st.integers(0, 99)
)
def test_tables_are_those_of_the_picture_in_memory(
    tmp_path: Path, height: int, width: int, classes: int, holes: bool, seed: int
) -> None:
    picture, options = np.maximum(smooth_picture(height, width, seed), 8), {}
    if holes:  # without a value
        rng = np.random.default_rng(seed)
        top, left = rng.integers(height), rng.integers(width)
        picture[top : top + rng.integers(1, 60), left : left + rng.integers(1, 60)] = 7
        options = {"extratags": [(42113, 2, None, "7", True)]}
    path = save(tmp_path / "x.tif", picture, resolution=(300, 300), resolutionunit="INCH", **options)
    with Segmenter(fake(classes), view=TILES, workers=2) as segmenter:
        found, whole = both_ways(path, tmp_path / "out", segmenter)
    assert found == whole
    assert all(row["unit"] == "mm" for row in found["stats"])


@pytest.mark.parametrize("scale", [0.5, 0.4])
def test_of_a_smaller_network_tables_are_nearly_the_same(tmp_path: Path, scale: float) -> None:
    picture = np.maximum(smooth_picture(150, 200), 8)
    picture[40:100, 30:90] = 7
    path = save(tmp_path / "x.tif", picture, extratags=[(42113, 2, None, "7", True)])
    measuring = Measuring(PixelSize(0.5, 0.5, "um"))
    with Segmenter(fake(), view=ViewOptions("tile", scale=scale), measuring=measuring) as segmenter:
        found, whole = both_ways(path, tmp_path / "out", segmenter)
    [row], [expected] = found["stats"], whole["stats"]
    exact = scale == 0.5
    for name in ("confidence", "entropy", "unsure", "share"):
        assert float(row[name]) == pytest.approx(float(expected[name]), abs=1e-9 if exact else 0.01)
    assert row["components"] == expected["components"]
    assert row["unit"] == "um"
    for one, other in zip(found["objects"], whole["objects"], strict=True):
        assert float(one["pixels"]) == pytest.approx(float(other["pixels"]), abs=3 if exact else 40)
        assert float(one["intensity"]) == pytest.approx(float(other["intensity"]), abs=1 if exact else 4)


def test_how_far_it_is_from_what_the_model_has_seen_is_told(tmp_path: Path) -> None:
    """Of what is smaller than the figures are made of, and of what is halved before; odd sides, too."""
    figures = 19
    rows = tuple((0.0,) * at + (1.0,) for at in range(figures))
    spec = replace(fake_spec(TILE), domain=Domain((0.0,) * figures, rows, 0.1, 20, 20))
    for size in ((64, 96), (131, 301)):
        rng = np.random.default_rng(5)
        path = save(tmp_path / "x.tif", rng.integers(0, 256, (*size, 3)).astype(np.uint8))
        with Segmenter(FakeBackend(spec), view=TILES) as segmenter:
            found, whole = both_ways(path, tmp_path / "out", segmenter)
        assert found["stats"] == whole["stats"]
        assert float(found["stats"][0]["unlike"]) > 1
    report, _ = segment(tmp_path / "x.tif", output=tmp_path / "run", view=TILES, backend=FakeBackend(spec))
    assert report.unlike == 1
    assert [note.note for note in report.file_notes] == [domain.UNLIKE]


def test_only_chosen_classes_are_counted(tmp_path: Path) -> None:
    path = save(tmp_path / "x.tif", smooth_picture(90, 120))
    cleanup = Cleanup(classes=("class1", "class2"))
    with Segmenter(fake(4), view=TILES, cleanup=cleanup) as segmenter:
        found, whole = both_ways(path, tmp_path / "out", segmenter)
    assert found == whole
    assert {row["class"] for row in found["objects"]} == {"class1", "class2"}


def test_brightness_of_other_channels_than_a_person_sees_is_left_out(tmp_path: Path) -> None:
    spec = replace(fake_spec(TILE), in_channels=2)
    backend = FakeBackend(spec, lambda tiles: tiles[..., 0].copy())
    picture = smooth_picture(90, 120)
    path = save(tmp_path / "x.tif", picture)
    with Segmenter(backend, view=TILES, channels=(1, 3)) as segmenter:
        found, whole = both_ways(path, tmp_path / "out", segmenter)
    assert {row["intensity"] for row in found["objects"]} == {""}
    assert found["objects"] == [{**row, "intensity": ""} for row in whole["objects"]]
    assert found["stats"] == whole["stats"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A giant, and an ordinary photo whose name comes later."""
    save(tmp_path / "photos/a.tif", smooth_picture(150, 200))
    write(tmp_path / "photos/b.png", half_bright())
    return tmp_path / "photos"


@pytest.mark.parametrize("kinds", [("stats",), ("objects",), SAVE])
def test_those_of_a_run_have_them_and_the_next_run_does_nothing(
    folder: Path, tmp_path: Path, kinds: tuple[str, ...]
) -> None:
    pytest.importorskip("pyarrow", reason="writes Parquet")
    from pyarrow import parquet

    out, options = tmp_path / "out", {"view": TILES, "save": kinds, "parquet": True}
    report, heard = segment(folder, output=out, backend=fake(), **options)
    assert (report.done, report.failed, heard) == (2, 0, ["b", "a"])
    with Segmenter(fake(), view=TILES) as segmenter:
        result = segmenter.predict(folder / "a.tif")
        expected = {"stats": 1, "objects": len(result.objects())}
    for kind in set(kinds) - {"mask"}:
        joined = rows_of((out / f"{kind}.csv").read_bytes())
        assert [row["key"] for row in joined] == ["a"] * expected[kind] + ["b"]
        assert report.tables[kind]["rows"] == len(joined)
        assert parquet.read_table(out / f"{kind}.parquet").num_rows == len(joined)
    assert segment(folder, output=out, backend=fake(), **options)[1] == []


def test_memory_is_that_of_a_few_bands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 6 MB of pixels; their labels alone would take 8."""
    monkeypatch.setattr(giant, "_WRITTEN_AT_ONCE", 2**15)
    path, block = str(tmp_path / "x.tif"), np.zeros((64, 64, 3), np.uint8)
    block[::16, ::16] = 255  # 16 objects
    blocks = (block for _ in range(8 * 64))
    tifffile.imwrite(path, blocks, shape=(4096, 512, 3), dtype="u1", tile=(64, 64), photometric="rgb")
    tree = OutputTree(str(tmp_path / "out"), ("stats", "objects"))
    assert peak_of_segmenting(path, (4096, 512), tree) < 4e6
    rows = rows_of(Path(tree.path("objects", "x")).read_bytes())
    assert [int(row["id"]) for row in rows] == list(range(1, 16 * 8 * 64 + 1))
    assert {row["pixels"] for row in rows} == {"1"}


def test_what_needs_all_of_it_is_said(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("skimage", reason="splits objects")

    def run(name: str, save: tuple[str, ...], watershed: int | None, max_pixels: int) -> Any:
        plan = prepare(RunOptions((str(folder / "a.tif"),), str(tmp_path / name), save=save))
        measuring = Measuring(watershed=watershed)
        with Segmenter(fake(), view=TILES, max_pixels=max_pixels, measuring=measuring) as segmenter:
            return execute(plan, segmenter)

    [failure] = run("split", SAVE, 5, 20_000).failures
    assert "no objects are split (watershed 5)" in failure.message
    assert failure.hint == "leave --watershed out, or raise --max-pixels"
    assert run("whole", SAVE, 5, 30_000).done == 1, "it is read at once where that is allowed"
    assert run("masks", ("mask",), 5, 20_000).done == 1, "nothing is to be split"
    [failure] = run("instances", ("objects", "instances"), None, 20_000).failures
    assert "no instances can be drawn of it" in failure.message
    assert failure.hint.endswith("--save mask,prob,prob16,geotiff,stats,objects can be made of such pictures")


def test_what_a_killed_run_leaves_is_cleaned_and_it_begins_anew(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = Forked(segment_slowly, str(folder / "a.tif"), str(out), SAVE)
    until(lambda: any((out / "objects").glob(".ub-*.part")))
    process.kill()
    process.wait(PATIENCE)
    assert not (out / "objects/a.csv").exists()
    report, _ = segment(folder / "a.tif", output=out, view=TILES, backend=fake(), save=SAVE)
    assert report.status == "done"
    assert not list(out.rglob("*.part"))
    rows = rows_of((out / "objects/a.csv").read_bytes())
    assert sum(int(row["pixels"]) for row in rows) == np.count_nonzero(read(out / "masks/a.png"))


def test_a_full_disk_is_named_and_nothing_is_left(small_disk: Path, tmp_path: Path) -> None:
    specks = np.zeros((1000, 1000, 3), np.uint8)
    specks[::2, ::2] = 255
    path = save(tmp_path / "in/a.tif", specks)
    with pytest.raises(OutputError, match=r"a\.csv cannot be written: the disk is full"):
        segment(Path(path), output=small_disk / "out", view=TILES, backend=fake(), save=("objects",))
    assert not list(small_disk.rglob("*.part"))
    assert not (small_disk / "out/objects/a.csv").exists()
