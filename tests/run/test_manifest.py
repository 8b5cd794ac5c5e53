"""The manifest: what it remembers, what it forgives, and what it says of an item."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unet_batch.errors import ManifestError, OutputError, UsageError
from unet_batch.run import manifest as manifest_module
from unet_batch.run import records as records_module
from unet_batch.run.manifest import Manifest, shard_parts
from unet_batch.run.ordered import OrderedRecords
from unet_batch.run.records import Files, Identity, Listing, OutputRecipe, Record, sha256_of
from unet_batch.run.shard import Shard

RECIPE = OutputRecipe({"model": "abc", "threshold": 0.5}, "cars (sha256 abc), threshold 0.5")
PNG = b"\x89PNG.....IEND\xaeB`\x82"
SEEN = Identity("a.jpg", 10, 1_700_000_000_000_000_001)
SLOW_DISK = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def done(key: str, outputs: Mapping[str, Files] | None = None, identity: Identity = SEEN) -> Record:
    return Record(
        key,
        "done",
        identity,
        RECIPE.digest,
        outputs or {"mask": ((f"masks/{key}.png", len(PNG)),)},
        "fake fp32",
        "/photos",
    )


def write(folder: Path, *records: Record, part: str = "", recipe: OutputRecipe = RECIPE) -> Manifest:
    folder.mkdir(parents=True, exist_ok=True)
    manifest = Manifest(str(folder), part)
    with manifest.writing(recipe):
        for record in records:
            manifest.record(record)
    return manifest


def put(folder: Path, file: str, data: bytes = PNG) -> None:
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


# Memory


def test_a_new_folder_knows_nothing(tmp_path: Path) -> None:
    manifest = Manifest(str(tmp_path / "nowhere"))
    assert (manifest.records, manifest.is_new, manifest.damaged) == ({}, True, 0)
    assert not (tmp_path / "nowhere").exists()


def test_what_was_written_is_read(tmp_path: Path) -> None:
    records = [
        done(
            "lot/a",
            {"mask": (("masks/lot/a.png", 7),), "frames": (("frames/a/1.png", 1), ("frames/a/2.png", 2))},
        ),
        done("\u20ac \n%FF", identity=Identity("\u20ac \udcff\n", 1, 2, "ff" * 32)),
        Record("b", "failed", None, RECIPE.digest, error="decode: ImageError"),
        Record("c", "void"),
    ]
    write(tmp_path, *records)
    read = Manifest(str(tmp_path))
    assert [record._replace(at=0.0) for record in read.records.values()] == records
    assert list(read.records) == ["lot/a", "\u20ac \n%FF", "b", "c"]
    assert read.recipes == {RECIPE.digest: RECIPE.label}
    assert not read.is_new
    assert (tmp_path / "manifest.jsonl").read_bytes().isascii()


def test_the_last_line_of_a_key_counts(tmp_path: Path) -> None:
    write(tmp_path, done("a"), Record("a", "failed", SEEN, RECIPE.digest), done("b"), done("c"))
    write(tmp_path, Record("b", "void"))
    assert {key: record.status for key, record in Manifest(str(tmp_path)).records.items()} == {
        "a": "failed",
        "b": "void",
        "c": "done",
    }


@pytest.mark.parametrize("later", ["", "2-of-3"])
def test_between_files_the_later_line_counts(tmp_path: Path, later: str) -> None:
    for part, at, status in ((later, 200, "done"), ("1-of-3", 100, "failed")):
        name = f"manifest-{part}.jsonl" if part else "manifest.jsonl"
        (tmp_path / name).write_text(json.dumps({"v": 1, "key": "a", "status": status, "at": at}) + "\n")
    for part in ("", "1-of-3", "2-of-3", "3-of-3"):
        assert Manifest(str(tmp_path), part).records["a"].status == "done"
    assert shard_parts(str(tmp_path)) == ["1-of-3", *([later] if later else [])]


def test_who_vouches_for_what_is_there(tmp_path: Path) -> None:
    """The shards beside this one write nothing of its own; every other earlier run may have."""
    write(tmp_path, done("a"), part="1-of-3")
    assert Manifest(str(tmp_path), "2-of-3").is_new
    assert not Manifest(str(tmp_path), "1-of-3").is_new
    assert not Manifest(str(tmp_path), "2-of-4").is_new
    assert not Manifest(str(tmp_path)).is_new


def test_outputs_of_the_same_source_and_recipe_stay_on_record(tmp_path: Path) -> None:
    more = {"overlay": (("overlays/a.jpg", 5),)}
    write(tmp_path, done("a"))
    write(tmp_path, done("a", more))
    assert set(Manifest(str(tmp_path)).records["a"].outputs) == {"mask", "overlay"}
    write(tmp_path, done("a", more, Identity("a.jpg", 11, 5)))
    assert set(Manifest(str(tmp_path)).records["a"].outputs) == {"overlay"}, (
        "the mask is of another picture now"
    )


def test_a_hundred_thousand_lines_load_at_once(tmp_path: Path) -> None:
    lines = [done(f"shoot/{i // 1000}/IMG_{i:06}").line() for i in range(100_000)]
    (tmp_path / "manifest.jsonl").write_bytes(b"".join(lines))
    begun = time.process_time()
    manifest = Manifest(str(tmp_path))
    took, begun = time.process_time() - begun, time.process_time()
    for line in lines:
        json.loads(line)
    assert took < 3 * (time.process_time() - begun)  # as long, on a quiet machine
    assert len(manifest.records) == 100_000


def test_eight_threads_write_whole_lines(tmp_path: Path) -> None:
    manifest = Manifest(str(tmp_path))
    with manifest.writing(RECIPE), ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: manifest.record(done(f"{i:04}" * 20)), range(2000)))
    read = Manifest(str(tmp_path))
    assert (len(read.records), read.damaged) == (2000, 0)


def test_it_is_synced_now_and_then_and_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(manifest_module.os, "fsync", lambda descriptor: calls.append(descriptor))
    write(tmp_path, *(done(str(i)) for i in range(100)))
    assert len(calls) == 1
    monkeypatch.setattr(Manifest, "sync_seconds", -1)
    write(tmp_path, *(done(str(i)) for i in range(100)))
    assert len(calls) == 102


# Damage


@SLOW_DISK
@given(st.data())
def test_a_torn_end_costs_at_most_its_own_line(tmp_path: Path, data: st.DataObject) -> None:
    """A power cut leaves a beginning of what was written, then perhaps zeros where the rest was to be."""
    folder = tmp_path / os.urandom(4).hex()
    folder.mkdir()
    keys = data.draw(st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=6, unique=True))
    lines = [done(key).line() for key in keys]
    raw = b"".join(lines)
    cut = data.draw(st.integers(0, len(raw)))
    tail = data.draw(st.sampled_from([b"", bytes(1), bytes(500), bytes(7) + b"\n", b"\n"]))
    (folder / "manifest.jsonl").write_bytes(raw[:cut] + tail)
    # The line feed itself is not missed
    ends = [sum(map(len, lines[: i + 1])) - 1 for i in range(len(lines))]
    expected = {key for key, end in zip(keys, ends, strict=True) if end <= cut}
    torn = Manifest(str(folder))
    assert set(torn.records) == expected
    assert torn.damaged <= 1
    write(folder, done("after"), done(keys[0]))
    healed = Manifest(str(folder))
    assert set(healed.records) == expected | {"after", keys[0]}, "what comes later is not drawn in"


@SLOW_DISK
@given(st.binary(max_size=300), st.binary(max_size=300))
def test_nothing_in_the_file_can_stop_it(tmp_path: Path, before: bytes, after: bytes) -> None:
    folder = tmp_path / os.urandom(4).hex()
    folder.mkdir()
    (folder / "manifest.jsonl").write_bytes(before + b"\n" + done("a").line() + after)
    assert "a" in Manifest(str(folder)).records


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 1)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["done", "mask"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = (
    "v",
    "key",
    "status",
    "source",
    "size",
    "mtime_ns",
    "sha256",
    "recipe",
    "outputs",
    "maker",
    "error",
    "at",
    "made_with",
)


@SLOW_DISK
@given(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=13))
def test_no_field_can_stop_it(tmp_path: Path, values: dict[str, object]) -> None:
    folder = tmp_path / os.urandom(4).hex()
    folder.mkdir()
    line = {**json.loads(done("a").line()), **values}
    (folder / "manifest.jsonl").write_text(json.dumps(line) + "\n" + "[" * 100_000 + "\n")
    manifest = Manifest(str(folder))
    for key in manifest.records:
        manifest.state(key, SEEN, RECIPE.digest, ["mask"], Listing(str(folder)))
    manifest.made_otherwise("other", Listing(str(folder)))
    with OrderedRecords(str(folder)) as records:
        assert len(list(records.lines())) == len(manifest.records)


def test_a_newer_version_is_named(tmp_path: Path) -> None:
    (tmp_path / "manifest.jsonl").write_bytes(done("a").line() + b'{"v":2,"key":"b"}\n')
    with pytest.raises(ManifestError, match=r"manifest version 2, this one knows 1") as caught:
        Manifest(str(tmp_path))
    assert "update" in caught.value.hint


@pytest.mark.skipif(os.name == "nt", reason="Windows does not remove open files")
def test_a_folder_that_vanished_is_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    manifest = Manifest(str(folder))
    with manifest.writing(RECIPE):
        (folder / "manifest.jsonl").unlink()
        with pytest.raises(OutputError, match="vanished while the run wrote to it"):
            manifest.record(done("a"))
        (folder / "manifest.jsonl").write_text("another's")
        with pytest.raises(OutputError, match="vanished"):
            manifest.check()
    assert (folder / "manifest.jsonl").read_text() == "another's"


def test_a_disk_that_fills_up_inside_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    left = 10_000

    def short(descriptor: int, data: bytes) -> int:
        nonlocal left
        if not left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count = real(descriptor, bytes(data)[:left])
        left -= count
        return count

    manifest = Manifest(str(tmp_path))
    with manifest.writing(RECIPE):
        manifest.record(done("a"))
        monkeypatch.setattr(manifest_module.os, "write", short)
        left = 20
        with pytest.raises(OutputError, match=r"manifest\.jsonl cannot be written: the disk is full"):
            manifest.record(done("b"))
        left = 10_000
        manifest.record(done("c"))
    read = Manifest(str(tmp_path))
    assert (set(read.records), read.damaged) == ({"a", "c"}, 1)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(data=st.data())
def test_a_line_is_a_record_or_damaged_whatever_stands_in_it(data: st.DataObject) -> None:
    values = json.loads(done("a")._replace(error="e", at=1.5).line())
    assert Record.parse(values) == done("a")._replace(error="e", at=1.5)
    for name in data.draw(st.sets(st.sampled_from(sorted(values)), max_size=2)):
        if data.draw(st.booleans()):
            values[name] = data.draw(_JSON)
        else:
            del values[name]
    if (record := Record.parse(values)) is None:
        return
    words = [record.key, record.status, record.recipe, record.maker, record.root, record.error]
    if record.identity is not None:
        words += [record.identity.source, record.identity.sha256]
        assert isinstance(record.identity.size, int)
        assert isinstance(record.identity.mtime_ns, int)
    assert all(isinstance(word, str) for word in words)
    assert isinstance(record.at, (int, float))
    for kind, files in record.outputs.items():
        assert isinstance(kind, str)
        assert all(isinstance(file, str) and isinstance(size, int) for file, size in files)
    assert Record.parse(json.loads(record.line())) == record, "what is written again is read again"


def test_a_refused_sync_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for code in (errno.EINVAL, errno.EIO):

        def refuse(descriptor: int, code: int = code) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(manifest_module.os, "fsync", refuse)
        if code == errno.EINVAL:
            write(tmp_path, done("a"))  # a file system that cannot: nothing is lost
        else:
            with pytest.raises(OutputError, match="Input/output error"):
                write(tmp_path, done("a"))


def test_what_the_run_meets_elsewhere_is_not_told_of_the_manifest(tmp_path: Path) -> None:
    with pytest.raises(BrokenPipeError), Manifest(str(tmp_path)).writing(RECIPE):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


def test_a_folder_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "manifest.jsonl").mkdir()
    with pytest.raises(ManifestError, match="cannot be read: Is a directory"):
        Manifest(str(tmp_path))
    (tmp_path / "new").mkdir()
    manifest = Manifest(str(tmp_path / "new"))
    (tmp_path / "new/manifest.jsonl").mkdir()
    with (
        pytest.raises(OutputError, match="cannot be written: a folder of this name"),
        manifest.writing(RECIPE),
    ):
        pass


# States


@pytest.fixture
def known(tmp_path: Path) -> Path:
    """A folder with one finished item of two kinds."""
    put(tmp_path, "masks/a.png")
    put(tmp_path, "overlays/a.jpg", b"1234\xff\xd9")
    write(tmp_path, done("a", {"mask": (("masks/a.png", len(PNG)),), "overlay": (("overlays/a.jpg", 6),)}))
    return tmp_path


def state(folder: Path, identity: Identity | None = SEEN, key: str = "a", **changes: object) -> str:
    values: dict[str, object] = {"recipe": RECIPE.digest, "kinds": ("mask", "overlay"), **changes}
    return Manifest(str(folder)).state(key, identity, listing=Listing(str(folder)), **values)  # type: ignore[arg-type]


def test_done_and_new(known: Path) -> None:
    assert state(known) == "done"
    assert state(known, key="b") == "new"
    assert state(known, kinds=["mask", "cutout"]) == "more"


@pytest.mark.parametrize(
    "identity",
    [
        Identity("a.png", 10, SEEN.mtime_ns),
        Identity("a.jpg", 11, SEEN.mtime_ns),
        Identity("a.jpg", 10, SEEN.mtime_ns - 1),
        None,
    ],
)
def test_another_source(known: Path, identity: Identity | None) -> None:
    assert state(known, identity) == "changed"


def test_failed_and_void(known: Path) -> None:
    write(known, Record("a", "failed"), Record("b", "void"))
    assert [state(known, key=key) for key in "ab"] == ["failed", "void"]


def test_outputs_that_are_gone_or_cut_short(known: Path) -> None:
    put(known, "masks/a.png", PNG[:-1])
    assert state(known) == "lost"
    assert state(known, kinds=["overlay"]) == "done"
    put(known, "masks/a.png", b"")
    assert state(known) == "lost"
    put(known, "masks/a.png", PNG[:-6] + bytes(99))
    assert state(known) == "lost"
    (known / "masks/a.png").unlink()
    assert state(known) == "lost"
    (known / "masks/a.png").mkdir()
    assert state(known) == "lost"


@pytest.mark.parametrize("more", [b"longer", b""])
def test_an_output_that_somebody_worked_on_is_theirs(known: Path, more: bytes) -> None:
    put(known, "masks/a.png", PNG[:4] + more + PNG[-12:])
    assert state(known) == "edited"


def test_another_recipe(known: Path) -> None:
    assert state(known, recipe="f" * 16) == "other"
    (known / "masks/a.png").unlink()
    assert state(known, recipe="f" * 16) == "other", "the overlay is still there"
    manifest = Manifest(str(known))
    assert manifest.made_otherwise("f" * 16, Listing(str(known))) == {RECIPE.label: 1}
    assert not manifest.made_otherwise(RECIPE.digest, Listing(str(known)))
    (known / "overlays/a.jpg").unlink()
    assert state(known, recipe="f" * 16) == "lost", "nothing is mixed where nothing is left"
    assert not manifest.made_otherwise("f" * 16, Listing(str(known)))


def test_equal_contents(tmp_path: Path) -> None:
    put(tmp_path, "masks/a.png")
    source = tmp_path / "a.jpg"
    source.write_bytes(b"0123456789")
    digest = sha256_of(str(source))
    write(tmp_path, done("a", identity=Identity("a.jpg", 10, 1, digest)))
    touched, asked = Identity("a.jpg", 10, 2), []

    def contents() -> str:
        asked.append(1)
        return sha256_of(str(source))

    assert state(tmp_path, touched, kinds=["mask"]) == "changed", "not asked for"
    assert state(tmp_path, touched, kinds=["mask"], contents=contents) == "touched"
    source.write_bytes(b"9876543210")
    assert state(tmp_path, touched, kinds=["mask"], contents=contents) == "changed"
    assert len(asked) == 2
    assert state(tmp_path, Identity("a.jpg", 11, 2), kinds=["mask"], contents=contents) == "changed"
    assert state(tmp_path, Identity("a.jpg", 10, 1), kinds=["mask"], contents=contents) == "done"
    assert len(asked) == 2, "only where nothing else tells"
    assert sha256_of(str(tmp_path)) == ""


def test_each_folder_is_listed_once(known: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(50):
        put(known, f"masks/x/{i}.png")
    listed, real = [], os.scandir

    def scandir(path: str) -> object:
        listed.append(path)
        return real(path)

    monkeypatch.setattr(manifest_module.os, "scandir", scandir)
    listing = Listing(str(known))
    assert [listing.size(f"masks/x/{i}.png") for i in range(60)] == [len(PNG)] * 50 + [None] * 10
    assert listing.size("masks/none/a.png") is None
    assert len(listed) == 2


def test_a_listing_that_tells_sizes_gives_the_same(known: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows."""
    (known / "masks/folder.png").mkdir()
    files = ("masks/a.png", "masks/folder.png", "masks/none.png", "overlays/a.jpg")
    sizes = [Listing(str(known)).size(file) for file in files]
    monkeypatch.setattr(records_module, "_TELLS_SIZES", os.name != "nt")
    assert [Listing(str(known)).size(file) for file in files] == sizes == [len(PNG), None, None, 6]


@pytest.mark.parametrize(
    "file", ["../secret", "/etc/hostname", "masks/../../secret", "\0/a", "masks//a.png", ""]
)
def test_nothing_outside_is_looked_at(tmp_path: Path, file: str) -> None:
    put(tmp_path, "secret")
    put(tmp_path, "out/masks/a.png")
    assert Listing(str(tmp_path / "out")).size(file) is None


# Recipes


def test_a_recipe_is_its_facts() -> None:
    one, other = OutputRecipe({"a": 1, "b": [2, 3]}, "x"), OutputRecipe({"b": [2, 3], "a": 1}, "y")
    assert one.digest == other.digest
    assert len(one.digest) == 16
    assert one.digest != OutputRecipe({"a": 1, "b": [2, 4]}, "x").digest


# Shards


@given(st.lists(st.text(max_size=8), max_size=50), st.integers(1, 9))
def test_each_key_has_one_shard(keys: list[str], count: int) -> None:
    for key in keys:
        assert sum(Shard(number, count).takes(key) for number in range(1, count + 1)) == 1


def test_shards_are_about_equal() -> None:
    sizes = [sum(Shard(number, 4).takes(f"IMG_{i:05}") for i in range(10_000)) for number in range(1, 5)]
    assert all(2300 < size < 2700 for size in sizes), sizes
    assert Shard(2, 8).part == "2-of-8"
    assert str(Shard(2, 8)) == "2/8"


@pytest.mark.parametrize(
    "text", ["", "1", "0/4", "5/4", "a/b", "-1/4", "1/4/5", "\u00b2/4", "1/100000", "Slurm"]
)
def test_a_wrong_shard(text: str) -> None:
    with pytest.raises(UsageError, match="shard"):
        Shard.parse(text, {})


def slurm(task: int, least: int, most: int, count: int, step: int | None = None) -> dict[str, str]:
    values = {"ID": task, "MIN": least, "MAX": most, "COUNT": count, **({"STEP": step} if step else {})}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


def test_slurm() -> None:
    assert Shard.parse("2/8", slurm(1, 1, 4, 4)) == Shard(2, 8), "only where it is asked for"
    assert [Shard.parse("slurm", slurm(i, 0, 3, 4)) for i in range(4)] == [Shard(i, 4) for i in range(1, 5)]
    assert [Shard.parse("slurm", slurm(i, 5, 15, 3, 5)) for i in (5, 10, 15)] == [
        Shard(i, 3) for i in (1, 2, 3)
    ]
    assert Shard.parse("slurm", slurm(7, 7, 7, 1)) == Shard(1, 1)


@pytest.mark.parametrize(
    "variables",
    [{}, slurm(3, 3, 7, 2), slurm(2, 1, 7, 3, 3), {**slurm(1, 1, 2, 2), "SLURM_ARRAY_TASK_ID": "x"}],
)
def test_an_array_with_gaps_is_no_shard(variables: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="--shard slurm") as caught:
        Shard.parse("slurm", variables)
    assert "--array" in caught.value.hint
