"""No two pictures ever share an output, whatever they are called."""

from __future__ import annotations

import os
import unicodedata
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from unet_batch.files import naming
from unet_batch.files.naming import assign_keys, extension_of
from unet_batch.files.outputs import CUTOUT_FORMATS, KINDS, PICTURE_KINDS, OutputTree


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.jpg", "b.jpg"], ["a", "b"]),
        (["a.jpg", "a.png", "b.jpg"], ["a.jpg", "a.png", "b"]),
        (["A.jpg", "a.png"], ["A.jpg", "a.png"]),
        (["A.jpg", "a.jpg"], ["A.jpg", "a.jpg~2"]),
        (["A/x.jpg", "a/x.jpg"], ["A/x.jpg", "a/x.jpg~2"]),
        (["A/x.jpg", "a/y.jpg"], ["A/x", "a/y"]),
        (["A.jpg", "a.jpg", "a.jpg~2"], ["A.jpg", "a.jpg~3", "a.jpg~2"]),
        (["a.jpg", "a.png", "a.jpg.png"], ["a.jpg", "a.png", "a.jpg.png"]),
        (["a.jpg", "a.jpg.png"], ["a", "a.jpg.png"]),
        (["a", "a.jpg"], ["a", "a.jpg"]),
        (["\u00e9.jpg", "e\u0301.jpg"], ["\u00e9.jpg~2", "e\u0301.jpg"]),
        (["a\n.jpg", "a%0A.jpg"], ["a%0A.jpg", "a%0A.jpg~2"]),
        (["a.jpg", "a.png/b.jpg"], ["a.jpg", "a.png/b"]),  # masks/a.png is a folder
        (["a.JPG", "A.Jpg/b/c.jpg"], ["a.JPG", "A.Jpg/b/c"]),
        (["a", "a.png/b.jpg"], ["a~2", "a.png/b"]),
        ([".hidden.jpg", "..jpg", "...jpg"], [".hidden", "..jpg", "...jpg"]),
        (["stra\u00dfe.jpg", "STRASSE.jpg"], ["stra\u00dfe.jpg", "STRASSE.jpg~2"]),
        (["x\udce9.jpg"], ["x%E9"]),
        (["x\ud800.jpg"], ["x%ED%A0%80"]),
        (["a\x7f\x85.jpg"], ["a%7F%C2%85"]),
    ],
)
def test_keys(names: list[str], expected: list[str]) -> None:
    found = assign_keys(names)
    if names == ["stra\u00dfe.jpg", "STRASSE.jpg"]:
        expected = ["stra\u00dfe.jpg~2", "STRASSE.jpg"]  # S sorts before s
    assert [found[name] for name in names] == expected


@given(st.text(alphabet="aB.é/\\", max_size=8))
@example("/shoot.2024/IMG_1.JPG")
@example("/photos/.jpg")
def test_extensions_are_those_of_splitext(name: str) -> None:
    assert extension_of(name) == os.path.splitext(name)[1][1:].lower()


def test_long_names_are_shortened_and_stay_apart() -> None:
    names = ["n" * 240 + end + ".jpg" for end in ("a", "b", "A")]
    found = assign_keys(names)
    assert len({key.lower() for key in found.values()}) == 3
    assert all(len(key) <= naming.LONGEST for key in found.values())
    assert assign_keys(["\u00fc" * 120 + ".jpg"])["\u00fc" * 120 + ".jpg"].encode().decode()


def test_suffixes_are_those_of_the_outputs() -> None:
    suffixes = {KINDS[kind].suffix for kind in PICTURE_KINDS} | set(CUTOUT_FORMATS.values())
    assert suffixes == set(naming.SUFFIXES)
    assert naming.LONGEST + 20 <= 255


def make_part(character: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    twins = st.sampled_from(
        [
            "a",
            "A",
            "\u00e9",
            "e\u0301",
            "\u00df",
            "ss",
            "\u0130",
            "k",
            "\u212a",
            ".",
            "~2",
            "%0A",
            "\n",
            " ",
            "-",
            "\udce9",
        ]
    )
    text = st.lists(twins | character, min_size=1, max_size=4).map("".join)
    end = st.sampled_from(["", ".jpg", ".png", ".JPG", ".jpg.png", ".png~2", "~2", ".", " "])
    long = st.sampled_from(["n" * 250, "N" * 250, "\u00fc" * 124, "m" * 235, "m" * 236])
    return st.builds(str.__add__, text | long, end).filter(lambda part: part not in (".", ".."))


PARTS = make_part(st.characters(exclude_characters="/\0", exclude_categories=()))
NAMES = st.lists(st.lists(PARTS, min_size=1, max_size=3).map("/".join), min_size=1, max_size=14, unique=True)


def fold(path: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def folds(key: str) -> set[str]:
    return {
        unicodedata.normalize("NFC", key).casefold(),
        unicodedata.normalize("NFC", key.casefold()),
        fold(key),
    }


@settings(max_examples=200, deadline=None)
@given(NAMES, st.randoms(use_true_random=False))
@example(["a.jpg", "a.png", "a.jpg.png", "a.jpg.png.png", "A.JPG", "a.jpg~2"], None)
@example(["a.jpg", "a.png/b.jpg", "a.jpg.png/c.jpg", "a.jpg~2.png/d.jpg"], None)
def test_keys_hold_for_any_names(names: list[str], random: Any) -> None:
    found = assign_keys(names)
    assert list(found) == sorted(names, key=lambda name: name.split("/"))
    shuffled = names[::-1]
    if random is not None:
        random.shuffle(shuffled)
    assert assign_keys(shuffled) == found

    seen: dict[str, str] = {}
    for key in found.values():
        for folded in folds(key):
            assert seen.setdefault(folded, key) == key
    assert len(set(found.values())) == len(names)

    tree = OutputTree("/out", ["mask", "overlay"])
    folders, files = set(), set()
    for name, key in found.items():
        assert key.count("/") == name.count("/")
        for kind in tree.kinds:
            path = tree.path(kind, key)
            assert os.path.normpath(path) == path
            assert path.startswith("/out/")
            parts = path.split("/")
            # And it encodes: nothing undecodable is left
            assert all(len(part.encode()) <= 255 for part in parts)
            assert len(key.split("/")[-1].encode()) + 20 <= 255
            assert not any(unicodedata.category(character) == "Cc" for character in path)
            files.add(fold(path))
            folders.update(fold("/".join(parts[:depth])) for depth in range(1, len(parts)))
    assert not files & folders
    assert len(files) == 2 * len(names)


@settings(max_examples=50, deadline=None)
@given(NAMES)
def test_plain_names_keep_their_stems(names: list[str]) -> None:
    plain = [f"folder{number}/IMG.{number}.jpg" for number in range(3)]
    found = assign_keys([*plain, *(f"x{name}" for name in names)])
    assert [found[name] for name in plain] == [f"folder{number}/IMG.{number}" for number in range(3)]
