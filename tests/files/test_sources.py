"""Finding pictures, and naming their outputs."""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.systems import needs_any_name, needs_links, needs_permissions, needs_pipes, needs_posix
from tests.helpers.waiting import PATIENCE
from unet_batch.errors import SourceError
from unet_batch.files import roots, sources
from unet_batch.files.atomic import write_atomic, write_json
from unet_batch.files.naming import _fold, assign_folder_names
from unet_batch.files.outputs import OutputTree
from unet_batch.files.sources import check_names, collect

HOSTILE = [
    *(
        "-rf.jpg",
        "a b.jpg",
        " lead.jpg",
        "trail .jpg",
        "dots...jpg",
        "new\nline.jpg",
        "tab\t.jpg",
        "100%0A.jpg",
        "con.jpg",
    ),
    *(
        "NUL.jpg",
        "back\\slash.jpg",
        "quote'\".jpg",
        "$(x).jpg",
        "*.jpg",
        "[a].jpg",
        "x.jpg.png",
        "emoji \U0001f697.jpg",
    ),
    *(
        "e\u0301.jpg",
        "\u00e9.png",
        "\u202egpj.jpg",
        "#hash.jpg",
        "@at.jpg",
        "~.jpg",
        "colon:.jpg",
        "a.b.c.jpg",
    ),
    *("n" * 251 + ".jpg", "\u00fc" * 125 + ".jpg"),
]


def is_picture(name: str) -> bool:
    return name.lower().endswith((".jpg", ".jpeg", ".png"))


def find(*names: str | Path, **more: Any) -> sources.Sources:
    return collect([str(name) for name in names], is_picture=is_picture, **more)


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def keys(found: sources.Sources) -> list[str]:
    return [item.key for item in found.items]


# Folders


def test_folder_is_searched_to_the_bottom_in_a_fixed_order(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "b.jpg",
        "a/z.png",
        "a-b/y.jpg",
        "B.jpeg",
        "a/deep/er/x.JPG",
        "notes.txt",
        "clip.MP4",
        "README",
    )
    found = find(tmp_path)
    assert keys(found) == ["B.jpeg", "a/deep/er/x", "a/z", "a-b/y", "b.jpg"]
    assert found.items[1].path == str(tmp_path / "a/deep/er/x.JPG")
    assert found.root == str(tmp_path)
    assert found.ignored == {".txt": 1, ".mp4": 1, "": 1}
    assert (found.skipped_folders, found.unreadable, found.duplicates) == ((), (), 0)


def test_order_is_that_of_the_keys_not_of_the_file_names(tmp_path: Path) -> None:
    touch(tmp_path, "a/z.jpg", "a.jpg", "a b.jpg")
    assert keys(find(tmp_path)) == ["a", "a/z", "a b"]


def test_hidden_files_and_junk_are_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", ".b.jpg", ".git/c.jpg", "__MACOSX/d.jpg", "Thumbs.db", "desktop.ini", "._a.jpg")
    found = find(tmp_path)
    assert keys(found) == ["a"]
    assert not found.ignored


def test_a_hidden_file_that_was_named_is_taken(tmp_path: Path) -> None:
    touch(tmp_path, ".b.jpg", ".c/d.jpg", ".jpg")
    assert keys(find(tmp_path / ".b.jpg", tmp_path / ".c", tmp_path / ".jpg")) == [".b", ".c/d", ".jpg"]


def test_folder_without_pictures_says_what_it_holds(tmp_path: Path) -> None:
    touch(tmp_path, *[f"{i}.mp4" for i in range(12)], "x/a.txt", "b.txt", "c.TXT", "plain")
    with pytest.raises(SourceError, match=r"holds 0 pictures; 12 \.mp4, 3 \.txt, 1 without extension"):
        find(tmp_path)
    (tmp_path / "void").mkdir()
    with pytest.raises(SourceError, match="0 pictures; no other files"):
        find(tmp_path / "void")


@needs_links
def test_links_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    touch(tmp_path, "photos/sub/a.jpg", "elsewhere/b.jpg")
    (tmp_path / "photos/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos/sub/up").symlink_to(tmp_path / "photos")
    (tmp_path / "photos/self").symlink_to(".")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "photos/sub")
    found = find(tmp_path / "photos")
    assert keys(found) == ["link/b", "link/back/a", "sub/a"]
    assert not found.unreadable


@needs_links
def test_a_loop_from_above_the_source_ends(tmp_path: Path) -> None:
    touch(tmp_path, "top/photos/a.jpg")
    (tmp_path / "top/photos/up").symlink_to(tmp_path / "top")
    assert keys(find(tmp_path / "top/photos")) == ["a"]


@needs_pipes
@needs_links
def test_what_cannot_be_read_but_is_called_like_a_picture_is_taken(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "circle.jpg").symlink_to("circle.jpg")
    (tmp_path / "disk").symlink_to("/nowhere/at/all")
    (tmp_path / "note.txt").symlink_to("/nowhere/at/all")
    os.mkfifo(tmp_path / "pipe.jpg")
    found = find(tmp_path)
    assert keys(found) == ["a", "circle", "gone", "pipe"]
    assert found.unreadable == ((str(tmp_path / "disk"), "a link to something that is not there"),)


def test_unlistable_sub_folder_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.jpg", "shut/b.jpg", "shut-too/c.jpg")
    real = os.scandir

    def scandir(path: str) -> Any:
        if "shut" in os.path.basename(path):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(sources.os, "scandir", scandir)
    found = find(tmp_path)
    assert found.unreadable == tuple(
        (str(tmp_path / name), "Permission denied") for name in ("shut", "shut-too")
    )
    with pytest.raises(SourceError, match=r"shut cannot be listed: Permission denied"):
        find(tmp_path / "shut")
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(SourceError, match="0 pictures; 2 folders that cannot be listed"):
        find(tmp_path)


@needs_permissions
def test_permissions_for_real(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "shut/b.jpg")
    (tmp_path / "shut").chmod(0)
    try:
        assert find(tmp_path).unreadable == ((str(tmp_path / "shut"), "Permission denied"),)
        with pytest.raises(SourceError, match="Permission denied"):
            find(tmp_path / "shut")
        with pytest.raises(SourceError, match="cannot be read: Permission denied"):
            find(tmp_path / "shut" / "b.jpg")
    finally:
        (tmp_path / "shut").chmod(0o755)


def test_many_files_list_quickly(tmp_path: Path) -> None:
    for folder in range(20):
        touch(tmp_path, f"f{folder:02}/IMG_00000.jpg")
        for number in range(1, 1000):  # hard links: a file each takes a busy machine a minute
            os.link(tmp_path / f"f{folder:02}/IMG_00000.jpg", tmp_path / f"f{folder:02}/IMG_{number:05}.jpg")
    begin = time.process_time()  # not the wall clock: the machine may be busy with something else
    found = find(tmp_path)
    seconds = time.process_time() - begin
    assert len(found.items) == 20_000
    assert keys(found) == sorted(keys(found))
    assert seconds < 2


@needs_any_name
def test_hostile_names_in_a_real_folder(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path)
    names = [os.fsencode(name) for name in HOSTILE] + [b"latin\xe9.jpg", b"latin%E9.jpg"]
    for name in names:
        with open(os.path.join(raw, name), "wb"):
            pass
    found = find(tmp_path)
    assert len(found.items) == len(os.listdir(tmp_path))
    assert {os.fsencode(item.path) for item in found.items} == {
        os.path.join(raw, name) for name in os.listdir(raw)
    }
    tree = OutputTree(str(tmp_path / "out"), ["mask"])
    for item in found.items:
        write_atomic(tree.path("mask", item.key), b"x")
    assert all(os.path.isfile(tree.path("mask", item.key)) for item in found.items)


# Earlier outputs


def test_outputs_are_never_sources(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "old/masks/a.png", "other/b.jpg", "out/masks/a.png")
    write_json(str(tmp_path / "old/run.json"), {"unet_batch": "1.0", "status": "done"})
    (tmp_path / "other/run.json").write_text('{"their": "own"}')
    found = find(tmp_path, exclude=[str(tmp_path / "out")])
    assert keys(found) == ["a", "other/b"]
    assert found.skipped_folders == (str(tmp_path / "old"), str(tmp_path / "out"))
    assert keys(find("**", cwd=str(tmp_path), exclude=["out"])) == ["a", "other/b"]
    assert keys(find(tmp_path / "other", tmp_path / "old")) == ["b"]
    with pytest.raises(SourceError, match=r"hold outputs, such as .*old"):
        find(tmp_path / "old")
    with pytest.raises(SourceError, match="hold outputs"):
        find(tmp_path / "other", exclude=[str(tmp_path / "other")])


def test_only_the_sub_folders_of_an_output_can_be_named(tmp_path: Path) -> None:
    touch(tmp_path, "old/masks/a.png")
    (tmp_path / "old/run.json").write_text('{"unet_batch": "1"}')
    assert keys(find(tmp_path / "old/masks")) == ["a"]


@needs_links
def test_output_folder_is_known_by_any_name(tmp_path: Path) -> None:
    touch(tmp_path, "data/photos/a.jpg", "data/photos/out/masks/a.png")
    (tmp_path / "photos").symlink_to(tmp_path / "data/photos")
    (tmp_path / "data/photos/again").symlink_to("out")
    found = find(tmp_path / "photos", exclude=[str(tmp_path / "data/photos/out")])
    assert keys(found) == ["a"]
    assert found.skipped_folders == (str(tmp_path / "photos/again"), str(tmp_path / "photos/out"))


@needs_pipes
def test_a_pipe_called_run_json_does_not_block(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    os.mkfifo(tmp_path / "run.json")
    thread = threading.Thread(target=find, args=(tmp_path,), daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive()


# Files


def test_files_are_taken_whatever_their_extension(tmp_path: Path) -> None:
    touch(tmp_path, "a.dat", "x/b.jpg")
    found = find(tmp_path / "a.dat", tmp_path / "x/b.jpg")
    assert keys(found) == ["a", "x/b"]
    assert found.root == str(tmp_path)
    assert find(tmp_path / "x/b.jpg").root == str(tmp_path / "x")


@needs_posix
def test_the_same_file_twice_is_taken_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "p/a.jpg", "p/b.jpg", "p/c.txt")
    monkeypatch.chdir(tmp_path)
    found = find(
        "p", "p/a.jpg", tmp_path / "p/a.jpg", "./p/../p/b.jpg", "//" + str(tmp_path)[1:] + "/p/a.jpg", "p"
    )
    assert keys(found) == ["a", "b"]
    assert found.duplicates == 6
    assert found.ignored == {".txt": 1}


@needs_links
def test_dotdot_means_what_the_system_means(tmp_path: Path) -> None:
    touch(tmp_path, "real/deep/x.jpg", "real/a.jpg", "a.jpg")
    (tmp_path / "link").symlink_to("real/deep")
    found = find("link/../a.jpg", cwd=str(tmp_path))
    assert found.items[0].path == str(tmp_path / "real/a.jpg")
    assert find("link/..", cwd=str(tmp_path)).root == str(tmp_path / "real")


def test_missing_source_is_named_with_a_suggestion(tmp_path: Path) -> None:
    touch(tmp_path, "photos/a.jpg")
    with pytest.raises(SourceError, match="fotos does not exist") as info:
        find(tmp_path / "fotos")
    assert info.value.hint == "there is photos"
    with pytest.raises(SourceError, match="does not exist") as info:
        find(tmp_path / "no/such/thing.jpg")
    assert info.value.hint == f"there is no folder {tmp_path}/no/such"


@pytest.mark.parametrize("source", ["", "a\0b", "@a\0b", "@", "\ud800", "a.jpg/b.jpg"])
def test_impossible_names_are_errors_of_ours(tmp_path: Path, source: str) -> None:
    touch(tmp_path, "a.jpg")
    with pytest.raises(SourceError):
        find(source, cwd=str(tmp_path))


def test_no_sources_at_all() -> None:
    with pytest.raises(SourceError, match="no pictures to segment"):
        find()


def test_different_drives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def commonpath(_: object) -> str:
        raise ValueError("Paths don't have the same drive")

    touch(tmp_path, "c/photos/x/a.jpg", "d/photos/a.jpg", "d/Lot/b.jpg")
    monkeypatch.setattr(roots.os.path, "commonpath", commonpath)
    found = find("d/photos", "c/photos", "d/Lot/b.jpg", cwd=str(tmp_path))
    assert keys(found) == ["Lot/b", "photos/x/a", "photos~2/a"]
    assert (found.root, found.default_output) == ("", str(tmp_path / "segmented"))
    assert found.folders == tuple(str(tmp_path / name) for name in ("c/photos", "d/Lot", "d/photos"))
    item = found.items[1]
    assert os.path.join(found.root_of(item.path), found.relative(item.path)) == item.path


# Patterns


@pytest.fixture
def shoots(tmp_path: Path) -> str:
    touch(
        tmp_path,
        "s1/a.jpg",
        "s1/raw/b.jpg",
        "s1/raw/c.dat",
        "s2/raw/x/d.jpg",
        "s2/.hid/e.jpg",
        "t/raw/f.jpg",
        "g.jpg",
        "h.txt",
    )
    return str(tmp_path)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jpg", ["g"]),
        ("?.*", ["g"]),
        ("*", ["g", "s1/a", "s1/raw/b", "s2/raw/x/d", "t/raw/f"]),
        ("s*", ["s1/a", "s1/raw/b", "s2/raw/x/d"]),
        ("s*/", ["s1/a", "s1/raw/b", "s2/raw/x/d"]),
        ("s*/raw", ["s1/raw/b", "s2/raw/x/d"]),
        ("./s[12]/*.jpg", ["s1/a"]),
        ("s[!1]/**/*.jpg", ["s2/raw/x/d"]),
        ("**/raw/*.jpg", ["s1/raw/b", "t/raw/f"]),
        ("**/raw", ["s1/raw/b", "s2/raw/x/d", "t/raw/f"]),
        ("**/*.jpg", ["g", "s1/a", "s1/raw/b", "s2/raw/x/d", "t/raw/f"]),
        ("**", ["g", "s1/a", "s1/raw/b", "s2/raw/x/d", "t/raw/f"]),
        ("s1/**/**/b.jpg", ["raw/b"]),
        ("s1/raw/*.dat", ["c"]),
        ("s1/raw/*", ["b"]),
    ],
)
def test_patterns(shoots: str, pattern: str, expected: list[str]) -> None:
    found = find(pattern, cwd=shoots)
    assert keys(found) == expected
    assert found.duplicates == 0


def test_patterns_that_match_nothing(shoots: str) -> None:
    with pytest.raises(SourceError, match=r"\*\.tif matches 0 pictures"):
        find("*.tif", cwd=shoots)
    with pytest.raises(SourceError, match=r"\*\.t\* matches 0 pictures; 1 \.txt"):
        find("*.t*", cwd=shoots)
    with pytest.raises(SourceError, match="cannot be listed: No such file") as info:
        find("s11/*.jpg", cwd=shoots)
    assert "s1" in info.value.hint


@needs_posix
def test_a_file_called_like_a_pattern_is_that_file(tmp_path: Path) -> None:
    touch(tmp_path, "[ab].jpg", "a.jpg", "[2024] x/y.jpg", "2/y.jpg", "*/z.jpg")
    assert keys(find("[ab].jpg", cwd=str(tmp_path))) == ["[ab]"]
    assert keys(find("[2024] x/*.jpg", cwd=str(tmp_path))) == ["y"]
    assert keys(find("[2024]/*.jpg", cwd=str(tmp_path))) == ["2/y"]
    assert keys(find("y.*", cwd=str(tmp_path / "[2024] x"))) == ["y"]
    assert keys(find(str(tmp_path / "[[]2024[]]*/*.jpg"))) == ["[2024] x/y"]
    with pytest.raises(SourceError, match="does not exist"):
        find("[2024] x/no.jpg", cwd=str(tmp_path))


@needs_links
def test_a_pattern_is_not_led_in_circles(tmp_path: Path) -> None:
    touch(tmp_path, "a/x.jpg")
    for name in "bcd":
        (tmp_path / "a" / name).symlink_to(".")
    begin = time.process_time()
    assert keys(find("**/*.jpg", cwd=str(tmp_path))) == ["a/x"]
    assert time.process_time() - begin < 1


# Lists


@needs_any_name
def test_list(tmp_path: Path) -> None:
    touch(tmp_path, "lists/near.jpg", "far/a.jpg", "far/b.png", "lists/ spaced .jpg", "lists/#1.jpg")
    text = f"\ufeff# title\r\nnear.jpg\r\n\r\n{tmp_path}/far\n"
    text += " spaced .jpg\n./#1.jpg\nmissing/c.jpg\nnear.jpg\n   \n"
    (tmp_path / "lists/list.txt").write_bytes(text.encode() + b"caf\xe9.jpg")
    found = find("@lists/list.txt", cwd=str(tmp_path))
    wanted = ["far/a", "far/b", "lists/ spaced ", "lists/#1", "lists/caf%E9", "lists/missing/c", "lists/near"]
    assert keys(found) == wanted
    assert found.duplicates == 1
    assert os.fsencode(found.items[4].path).endswith(b"lists/caf\xe9.jpg")


def test_empty_folders_in_a_list_are_reported_like_missing_files(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "f/b.txt")
    (tmp_path / "list.txt").write_text("a.jpg\nf\n")
    found = find("@list.txt", cwd=str(tmp_path))
    assert keys(found) == ["a"]
    assert found.unreadable == ((str(tmp_path / "f"), "holds 0 pictures; 1 .txt"),)
    (tmp_path / "list.txt").write_text("f\n")
    with pytest.raises(SourceError, match=r"no pictures to segment; .*f holds 0 pictures"):
        find("@list.txt", cwd=str(tmp_path))


def test_bad_lists(tmp_path: Path) -> None:
    (tmp_path / "none.txt").write_text("# nothing\n\n")
    (tmp_path / "wide.txt").write_bytes("a.jpg\n".encode("utf-16"))
    for name, message in [
        ("none.txt", "names no files"),
        ("wide.txt", "not UTF-8"),
        ("gone.txt", "No such file"),
        (".", "directory"),
    ]:
        with pytest.raises(SourceError, match=message) as info:
            find("@" + name, cwd=str(tmp_path))
        assert info.value.hint


def test_a_file_that_begins_with_at(tmp_path: Path) -> None:
    touch(tmp_path, "@x.jpg")
    assert keys(find("./@x.jpg", cwd=str(tmp_path))) == ["@x"]


@needs_pipes
def test_a_list_through_a_pipe_is_relative_to_the_current_folder(tmp_path: Path) -> None:
    touch(tmp_path, "sub/a.jpg")
    os.mkfifo(tmp_path / "pipe")
    thread = threading.Thread(target=lambda: (tmp_path / "pipe").write_text("a.jpg\n"))
    thread.start()
    found = find(f"@{tmp_path}/pipe", cwd=str(tmp_path / "sub"))
    thread.join()
    assert found.items[0].path == str(tmp_path / "sub/a.jpg")


# Several sources


@settings(max_examples=25, deadline=None)
@given(order=st.permutations(["s1", "s1/a.jpg", "s2/*.jpg", "@list", "s2"]))
def test_the_order_of_sources_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, order: list[str]
) -> None:
    folder = tmp_path_factory.getbasetemp() / "order"
    if not folder.exists():
        touch(folder, "s1/a.jpg", "s1/a.png", "s2/A.jpg", "s2/a.jpg", "s2/b.txt")
        (folder / "list").write_text("s2/a.jpg\ns1\ns9/gone.jpg\n")
    found = find(*order, cwd=str(folder))
    assert keys(found) == ["s1/a.jpg", "s1/a.png", "s2/A.jpg", "s2/a.jpg~2", "s9/gone"]
    assert found.ignored == {".txt": 1}
    assert found.root == str(folder)


# The default output


def make_home(folder: Path) -> Path:
    """The folder to be in, with pictures in it and around it."""
    touch(folder, *(f"home/{name}" for name in ("car.jpg", "a/1.jpg", "a/in/2.jpg", "b/3.jpg", "~x/4.jpg")))
    touch(folder, "other/car.jpg", "other/deep/5.jpg", "x.jpg", "homes/6.jpg")
    (folder / "home/list.txt").write_text("a/1.jpg\nb\n")
    (folder / "home/one.txt").write_text("a\n")
    return folder / "home"


@pytest.mark.parametrize(
    ("named", "output"),
    [
        # A folder: beside it.
        ("a", "a-segmented"),
        ("a/", "a-segmented"),
        ("./a/../a", "a-segmented"),
        ("a a/1.jpg a/in", "a-segmented"),
        ("a/in", "a/in-segmented"),
        ("@one.txt", "a-segmented"),
        ("../other", "../other-segmented"),
        ("../homes", "../homes-segmented"),
        # Anything else: where all of it lies.
        ("a/1.jpg", "a/segmented"),
        ("a/*.jpg", "a/segmented"),
        ("a/1.jpg a/in", "a/segmented"),
        ("../other/car.jpg", "../other/segmented"),
        ("../other/*/*.jpg", "../other/segmented"),
        # Where that is here or further out: here.
        ("car.jpg", "segmented"),
        ("./car.jpg", "segmented"),
        ("*.jpg", "segmented"),
        ("**/*.jpg", "segmented"),
        ("a b", "segmented"),
        ("a/1.jpg b/3.jpg", "segmented"),
        ("@list.txt", "segmented"),
        (".", "segmented"),
        ("..", "segmented"),
        ("../home", "segmented"),
        ("../other ../homes", "segmented"),
        ("car.jpg ../x.jpg", "segmented"),
        ("../*.jpg", "segmented"),
    ],
)
def test_where_results_go(tmp_path: Path, named: str, output: str) -> None:
    home = make_home(tmp_path)
    found = find(*named.split(), cwd=str(home))
    assert found.default_output == os.path.normpath(home / output)


def test_results_do_not_go_outside_a_disk_or_to_its_top(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "disk/a.jpg", "home/x")
    mount = str(tmp_path / "disk")
    monkeypatch.setattr(roots.os.path, "ismount", lambda path: path == mount)
    for named in ("../disk", "../disk/a.jpg"):
        assert find(named, cwd=str(tmp_path / "home")).default_output == os.path.join(mount, "segmented")


@needs_links
def test_the_current_folder_is_known_by_another_name(tmp_path: Path) -> None:
    touch(tmp_path, "real/home/car.jpg")
    (tmp_path / "link").symlink_to("real")
    found = find(tmp_path / "link/home/car.jpg", cwd=str(tmp_path / "real/home"))
    assert found.default_output == str(tmp_path / "real/home/segmented")


SPOTS = ("car.jpg", "a", "a/1.jpg", "a/in", "b", "b/3.jpg", "~x", ".", "*.jpg", "a/*", "**", "@list.txt")
OUTSIDE = ("..", "../x.jpg", "../other", "../other/car.jpg", "../other/deep", "../homes", "../*.jpg")


@settings(max_examples=150, deadline=None)
@given(
    named=st.lists(st.sampled_from(SPOTS + OUTSIDE), min_size=1, max_size=4),
    top=st.sampled_from(["", "{}/", "{}/../home/"]),
)
def test_results_never_leave_the_current_folder_unless_a_source_has(
    tmp_path_factory: pytest.TempPathFactory, named: list[str], top: str
) -> None:
    base = tmp_path_factory.getbasetemp() / "where"
    cwd = base / "home"
    if not base.exists():
        make_home(base)
    prefix = top.format(cwd)
    asked = [name if name.startswith("@") else prefix + name for name in named]
    found = find(*asked, cwd=str(cwd))
    out = Path(found.default_output)
    assert out.is_absolute()
    inside = not set(named) & set(OUTSIDE)
    if inside:
        assert cwd in out.parents
    # In the current folder, or where all that was named lies; above the current folder only beside a folder
    # that was named and lies there.
    places = [Path(os.path.normpath(cwd / name.lstrip("@"))) for name in named]
    assert out.parent == cwd or all(out.parent in (place, *place.parents) for place in places)
    if out.parent in cwd.parents:
        assert any(out.name == f"{place.name}-segmented" and place.parent == out.parent for place in places)
    # A picture read now is never where results go, and each has a key of its own.
    assert not any(out in Path(item.path).parents for item in found.items)
    assert len({key.casefold() for key in keys(found)}) == len(found.items)
    # What is written there is not read by the next run of the same, nor does it move.
    masks = out / "masks"
    masks.mkdir(parents=True)
    try:
        (masks / "x.png").touch()
        write_json(str(out / "run.json"), {"unet_batch": "1.0"})
        again = find(*asked, cwd=str(cwd))
        assert (again.items, again.default_output) == (found.items, found.default_output)
    finally:
        shutil.rmtree(out)


# Sources with nothing in common


def test_no_path_from_the_top_is_part_of_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if `tmp_path` were the top of the file system."""
    touch(tmp_path, "home/me/photos/a.jpg", "home/me/photos/in/b.jpg", "mnt/usb/photos/a.jpg", "mnt/c.jpg")
    monkeypatch.setattr(roots.os.path, "commonpath", lambda paths: os.sep)
    found = find("home/me/photos", "mnt/usb/photos", cwd=str(tmp_path))
    assert keys(found) == ["photos/a", "photos/in/b", "photos~2/a"]
    found = find(
        "home/me/photos/in", "home/me/photos", "mnt/c.jpg", "mnt/usb/photos/a.jpg", cwd=str(tmp_path)
    )
    assert keys(found) == ["mnt/c", "mnt/usb/photos/a", "photos/a", "photos/in/b"]
    assert found.default_output == str(tmp_path / "segmented")


@needs_posix
def test_the_top_itself_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert roots.common_folder(["/", "/home/me"]) == "/"
    assert roots.common_folder(["/home/me", "/mnt"]) == ""
    assert roots.common_folder(["/home/me", "/home"]) == "/home"
    assert roots.default_output("/", is_named=True, cwd=str(tmp_path)) == str(tmp_path / "segmented")


@given(
    st.sets(
        st.lists(st.sampled_from(["a", "A", "b", "a~2", "é", "e\u0301", "c"]), min_size=1, max_size=3).map(
            lambda steps: "/" + "/".join(steps)
        ),
        min_size=1,
        max_size=8,
    )
)
def test_folders_that_share_a_name_are_told_apart(folders: set[str]) -> None:
    names = assign_folder_names(folders)
    assert names.keys() == folders
    assert len(set(map(_fold, names.values()))) == len(folders)
    assert names == assign_folder_names(sorted(folders, reverse=True))
    assert all(name.split("~")[0] == os.path.basename(folder).split("~")[0] for folder, name in names.items())
    if len({_fold(os.path.basename(folder)) for folder in folders}) == len(folders):
        assert all(name == os.path.basename(folder) for folder, name in names.items())


# Names, before anything is looked through


def test_names_are_checked_without_looking_into_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "photos/a.jpg", "list.txt")
    with pytest.raises(SourceError, match="fotos does not exist") as info:
        check_names(["photos", "fotos"], cwd=str(tmp_path))
    assert info.value.hint == "there is photos"
    with pytest.raises(SourceError, match="an empty name"):
        check_names([""], cwd=str(tmp_path))
    monkeypatch.setattr(sources.os, "scandir", None)
    check_names(["photos", "ph*/*.jpg", "@list.txt", "@none"], cwd=str(tmp_path))
    check_names(["rtsp://h/s"], live=lambda source: "s" if "://" in source else None, cwd=str(tmp_path))


def test_folders_may_be_empty_where_files_are_still_to_come(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg", "old/run.json")
    (tmp_path / "b").mkdir()
    (tmp_path / "old/run.json").write_text('{"unet_batch": "1"}')
    (tmp_path / "home").mkdir()
    for named, found_keys, output in ((["b"], [], "b-segmented"), (["a", "b"], ["a/1"], "segmented")):
        found = find(*(tmp_path / name for name in named), may_be_empty=True, cwd=str(tmp_path / "home"))
        assert keys(found) == found_keys
        assert found.default_output == str(tmp_path / ("home" if "a" in named else "") / output)
    with pytest.raises(SourceError, match="hold outputs"):
        find(tmp_path / "old", may_be_empty=True)
