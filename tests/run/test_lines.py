"""The quick way to read a manifest gives what the slow one gives, or leaves the line to it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from unet_batch.run import manifest as manifest_module
from unet_batch.run.lines import parse_usual
from unet_batch.run.manifest import Manifest, parse_line, parser_for, recipe_line
from unet_batch.run.records import VERSION, Identity, Record

USUAL = Record(
    "lot/a",
    "done",
    Identity("lot/a.jpg", 10, 2, "ff"),
    "ab12",
    {"mask": (("masks/lot/a.png", 7),)},
    "fake",
    "/p",
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=3)
    | st.sampled_from(
        ["done", 1, 1.0, 2**70, 10**400, "\udcff", {"mask": [["a", 1.0]]}, {"mask": [["a", 1, 2]]}]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from([*json.loads(USUAL._replace(error="e").line()), "made_with", "more"])


def slowly(line: bytes) -> Record | None:
    """As a manifest takes a line that the quick way leaves."""
    values = parse_line(line.strip(b"\0\n"))
    if values is None or "made_with" in values or values.get("v", VERSION) != VERSION:
        return None
    return Record.parse(values)


@given(st.dictionaries(NAMES, JSON, max_size=3), st.sets(NAMES, max_size=2), st.booleans())
@example({"key": "\u20ac"}, set(), False)
def test_it_reads_as_the_slow_way_does(changed: dict[str, object], gone: set[str], is_ascii: bool) -> None:
    values = {**json.loads(USUAL._replace(error="e").line()), **changed}
    text = json.dumps(
        {name: value for name, value in values.items() if name not in gone}, ensure_ascii=is_ascii
    )
    line = text.encode("utf-8", "surrogatepass") + b"\n"
    assert parse_usual(line) in (None, slowly(line))


@given(st.binary(max_size=60), st.integers(0, 300), st.integers(0, 300))
def test_whatever_stands_there(data: bytes, start: int, end: int) -> None:
    line = USUAL.line()
    for each in (data, line[:start] + data + line[end:], b"[" * 100_000):
        assert parse_usual(each) in (None, slowly(each))


@pytest.mark.parametrize(
    "record",
    [
        USUAL,
        USUAL._replace(identity=None, error="decode: ImageError", status="failed", outputs={}),
        USUAL._replace(key="\u20ac \n", outputs={"frames": (("frames/a/1.png", 1), ("frames/a/2.png", 2))}),
        Record("c", "void"),
    ],
)
def test_what_is_written_is_usual(record: Record) -> None:
    read = parse_usual(record._replace(at=1.5).line())
    assert read == record._replace(at=1.5)
    assert read.recipe is parse_usual(record.line()).recipe, "the same words are held once"  # type: ignore[union-attr]


def test_a_long_manifest_is_read_the_quick_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but its first line, one that names a newer recipe, and a torn one."""
    lines = [USUAL._replace(key=f"{number:05}").line() for number in range(2000)]
    lines[1000] = recipe_line("cd34", "trains") + lines[1000][:50] + b"\n"
    (tmp_path / "manifest.jsonl").write_bytes(recipe_line("ab12", "cars") + b"".join(lines))
    asked: list[bytes] = []
    monkeypatch.setattr(manifest_module, "parse_line", lambda line: [asked.append(line), parse_line(line)][1])
    manifest = Manifest(str(tmp_path))
    assert len(asked) == 3
    assert (len(manifest.records), manifest.damaged) == (1999, 1)
    assert manifest.recipes == {"ab12": "cars", "cd34": "trains"}


def test_without_msgspec_lines_are_read_the_slow_way(monkeypatch: pytest.MonkeyPatch) -> None:
    line = USUAL.line()
    assert parser_for(1 << 20)(line) is not None
    monkeypatch.setitem(sys.modules, "msgspec", None)
    monkeypatch.delitem(sys.modules, "unet_batch.run.lines")
    assert parser_for(1 << 20)(line) is None
