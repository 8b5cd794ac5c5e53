"""Where outputs go, and what killed runs leave there."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from tests.helpers.disk import dead_process, fail_with, names
from tests.helpers.systems import needs_links, needs_posix
from unet_batch.errors import OutputError, UsageError
from unet_batch.files import atomic, outputs
from unet_batch.files.outputs import CLIP_KINDS, KINDS, PICTURE_KINDS, ClipTree, OutputTree, Style
from unet_batch.run.shard import Shard


def test_layout(tmp_path: Path) -> None:
    tree = OutputTree(str(tmp_path), ["mask", "overlay", "cutout", "prob"])
    assert tree.folder == str(tmp_path)
    assert [os.path.relpath(tree.path(kind, "lot/a.b"), tmp_path) for kind in tree.kinds] == [
        "masks/lot/a.b.png",
        "overlays/lot/a.b.jpg",
        "cutouts/lot/a.b.png",
        "probs/lot/a.b.png",
    ]
    assert set(PICTURE_KINDS) == set(KINDS) - {"frames"}, "frames are of clips only"
    assert len({(kind.folder, kind.suffix) for kind in KINDS.values()}) == len(KINDS), (
        "no two write the same files"
    )


def test_style_decides_names_and_suffixes(tmp_path: Path) -> None:
    kinds = ("mask", "cutout", "background", "overlay")
    assert OutputTree(str(tmp_path), kinds).names == ("mask", "cutout", "background white", "overlay")
    picture = tmp_path / "sea.png"
    picture.write_bytes(b"one")
    styled = OutputTree(str(tmp_path), kinds, Style(str(picture), "webp", crop=True))
    mask, cutout, background, overlay = styled.names
    assert (mask, cutout, overlay) == ("mask", "cutout webp crop", "overlay")
    assert styled.file("cutout", "a") == "cutouts/a.webp"
    assert str(picture) not in background, "a picture counts by its contents"
    other = tmp_path / "other.png"
    other.write_bytes(b"one")
    assert Style(str(other), "webp", crop=True).name("background") == background
    other = tmp_path / "third.png"
    other.write_bytes(b"two")
    assert Style(str(other), "webp", crop=True).name("background") != background
    with pytest.raises(UsageError, match="cutout format 'gif'"):
        Style(cutout_format="gif")


def test_layout_of_clips(tmp_path: Path) -> None:
    tree = ClipTree(str(tmp_path), ["frames", "prob", "mask", "overlay"], {"mask": ".mkv", "overlay": ".mov"})
    assert tree.kinds == ("mask", "overlay", "frames")
    pictures = {"sheet", "palette", "prob", "prob16", "prob32", "geotiff", "dicomseg"}
    pictures |= {"instances", "stats", "objects"}
    assert set(CLIP_KINDS) == set(KINDS) - pictures
    assert [os.path.relpath(tree.path(kind, "lot/a.b"), tmp_path) for kind in (*tree.kinds, "timeline")] == [
        "masks/lot/a.b.mkv",
        "overlays/lot/a.b.mov",
        "frames/lot/a.b",
        "timelines/lot/a.b.csv",
    ]
    assert tree.unfinished("lot/a.b") == str(tmp_path / "unfinished/lot/a.b")


def test_unknown_kinds(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown kind of output: masks, x") as info:
        OutputTree(str(tmp_path), ["masks", "mask", "x"])
    assert "overlay" in info.value.hint
    assert OutputTree(str(tmp_path), ["mask", "mask"]).kinds == ("mask",)


@pytest.mark.parametrize(
    "key", ["", "/", "/etc/passwd", "..", "../a", "a/../../b", "a/..", ".", "./a", "a//b", "a/", "a\0"]
)
def test_no_output_leaves_the_folder(tmp_path: Path, key: str) -> None:
    with pytest.raises(OutputError, match="outside the output folder"):
        OutputTree(str(tmp_path), ["mask"]).path("mask", key)


@needs_posix
@pytest.mark.parametrize("key", ["..a", "a..", "...", "a\\..\\b", "~", "-", " ", "c:a", "\u202e", "a/b/c"])
def test_odd_keys_are_fine(tmp_path: Path, key: str) -> None:
    path = OutputTree(str(tmp_path), ["mask"]).path("mask", key)
    assert path == f"{tmp_path}/masks/{key}.png"


def test_prepare_makes_the_folder_and_leaves_nothing_in_it(tmp_path: Path) -> None:
    tree = OutputTree(str(tmp_path / "a/out"), ["mask"])
    tree.prepare()
    tree.prepare()
    assert names(tmp_path / "a/out") == []


@needs_posix
def test_prepare_fails_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    for name in ("file", "file/out"):
        with pytest.raises(OutputError, match=f"{tmp_path}/file is in the way") as info:
            OutputTree(str(tmp_path / name), ["mask"]).prepare()
        assert "-o" in info.value.hint
    with pytest.raises(OutputError, match="null byte"):
        OutputTree(f"{tmp_path}/a\0b", ["mask"]).prepare()
    monkeypatch.setattr(atomic.os, "open", fail_with(errno.EROFS))
    with pytest.raises(OutputError, match=f"{tmp_path} cannot be written: the disk is read-only"):
        OutputTree(str(tmp_path), ["mask"]).prepare()


# Leftovers


def test_only_leftovers_of_the_dead_are_removed(tmp_path: Path) -> None:
    tree = OutputTree(str(tmp_path), ["mask"])
    here, dead, day_ago = atomic.host_id(), dead_process(), time.time() - 25 * 3600
    goes = {
        f"masks/x/.ub-{here}-{dead}-00000000.part": False,
        f"overlays/.ub-{here}-{dead}-00000001.part": False,
        f".ub-{here}-{dead}-00000002.part": False,
        f"masks/.ub-ffffffff-{os.getpid()}-00000003.part": True,
    }
    stays = {
        f"masks/.ub-{here}-{os.getpid()}-00000004.part": False,  # of a live run
        f"masks/.ub-ffffffff-{dead}-00000005.part": False,  # of another machine, where that process may live
        f"masks/.ub-{here}-{dead}-00000006.part.png": True,
        f"masks/x/.ub-{here}-0-00000007.part": True,
        f"holiday/.ub-{here}-{dead}-00000008.part": True,  # no folder of ours
        "masks/.ub-.part": True,
        "masks/.hidden.part": True,
        f"masks/.ub-{here}-9999999999-00000009.part": False,  # no process can have this number
    }
    for name, old in {**goes, **stays}.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(b"")
        if old:
            os.utime(path, (day_ago, day_ago))
    (tmp_path / f"masks/.ub-{here}-{dead}-0000000a.part").mkdir()
    assert tree.clean_leftovers() == len(goes)
    assert [name for name in goes if (tmp_path / name).exists()] == []
    assert [name for name in stays if not (tmp_path / name).exists()] == []
    assert tree.clean_leftovers() == 0
    assert OutputTree(str(tmp_path / "none"), ["mask"]).clean_leftovers() == 0


def test_a_shard_cleans_what_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders that are dealt to others are not even listed; those above them are everybody's."""
    name = f".ub-{atomic.host_id()}-{dead_process()}-00000000.part"
    folders = [f"{kind}/lot/{number}" for kind in ("masks", "unfinished") for number in range(20)]
    for folder in (*folders, "masks", "masks/lot/3/deep"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / name).write_bytes(b"")
    listed: list[str] = []
    scan = outputs.scan
    monkeypatch.setattr(outputs, "scan", lambda folder: [listed.append(folder), scan(folder)][1])
    shards = [Shard(number, 4) for number in range(1, 5)]
    for shard in shards:
        OutputTree(str(tmp_path), ["mask"]).clean_leftovers(shard.branches(2))
        left = {path.parent.relative_to(tmp_path).as_posix() for path in tmp_path.rglob(name)}
        assert not any(shard.takes(f"{folder.partition('/')[2]}/a", 2) for folder in left)
    assert not left
    assert [listed.count(os.path.join(tmp_path, *folder.split("/"))) for folder in folders] == [1] * 40


@needs_links
def test_cleaning_stays_inside(tmp_path: Path) -> None:
    name = f".ub-{atomic.host_id()}-{dead_process()}-00000000.part"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / name).write_bytes(b"")
    (tmp_path / "out/masks").mkdir(parents=True)
    (tmp_path / "out/masks/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "out/masks" / name).symlink_to(tmp_path / "elsewhere" / name)
    assert OutputTree(str(tmp_path / "out"), ["mask"]).clean_leftovers() == 0
    assert names(tmp_path / "elsewhere") == [name]


def test_cleaning_never_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = OutputTree(str(tmp_path), ["mask"])
    (tmp_path / f".ub-{atomic.host_id()}-{dead_process()}-00000000.part").write_bytes(b"")
    monkeypatch.setattr(atomic.os, "unlink", fail_with(errno.EACCES))
    assert tree.clean_leftovers() == 0
    monkeypatch.setattr(atomic.os, "scandir", fail_with(errno.EACCES))
    assert tree.clean_leftovers() == 0
