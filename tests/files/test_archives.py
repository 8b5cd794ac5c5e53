"""Files in archives are found and read as if the archive were a folder."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, cast

import pytest

from unet_batch.errors import SourceError
from unet_batch.files import archives
from unet_batch.files.sources import Sources, collect

Pack = Callable[[Path, dict[str, bytes]], Path]
FILES = {"a.png": b"one", "sub/b.png": b"two" * 1000, "sub/deep/c é.png": b"", "notes.txt": b"text"}


def pack_zip(folder: Path, files: dict[str, bytes]) -> Path:
    path = folder / "photos.zip"
    with zipfile.ZipFile(path, "w") as file:
        for name, data in files.items():
            file.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
        file.mkdir("empty")
    return path


def pack_tar(folder: Path, files: dict[str, bytes]) -> Path:
    path = folder / "photos.tar"
    with tarfile.open(path, "w") as file:
        for name, data in files.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size, info.mtime = len(data), 1000
            file.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "a.png"
        file.addfile(link)
    return path


both = pytest.mark.parametrize("pack", [pack_zip, pack_tar])


def pictures(*sources: str, cwd: Path | None = None) -> Sources:
    return collect(sources, is_picture=lambda path: path.endswith(".png"), cwd=str(cwd) if cwd else None)


@both
class TestFiles:
    def test_each_member_is_read_under_its_path(self, tmp_path: Path, pack: Pack) -> None:
        archive = pack(tmp_path, FILES)
        assert {os.path.relpath(path, archive): archives.open_file(path).read()
                for path in archives.below(str(archive))} == {
            name.replace("/", os.sep): data for name, data in FILES.items()
        }  # fmt: skip
        assert [*archives.below(str(archive / "sub"))] == [
            str(archive / "sub" / "b.png"),
            str(archive / "sub" / "deep" / "c é.png"),
        ]

    def test_what_is_there_and_what_is_not(self, tmp_path: Path, pack: Pack) -> None:
        archive = pack(tmp_path, FILES)
        assert archives.exists(str(archive / "a.png"))
        assert archives.is_regular(str(archive / "a.png"))
        assert archives.stat(str(archive / "sub" / "b.png")).size == 3000
        assert archives.is_folder(str(archive))
        assert archives.is_folder(str(archive / "sub"))
        assert not archives.is_folder(str(archive / "a.png"))
        assert not archives.exists(str(archive / "b.png"))
        assert (
            archives.archive_of(str(archive / "a.png")) == archives.archive_of(str(archive)) == str(archive)
        )
        for look in (archives.stat, archives.open_file):
            with pytest.raises(FileNotFoundError, match="no such file in"):
                look(str(archive / "b.png"))

    def test_other_contents_are_seen(self, tmp_path: Path, pack: Pack) -> None:
        path = str(pack(tmp_path, {"a.png": b"old"}) / "a.png")
        before = archives.stat(path)
        assert archives.open_file(path).read() == b"old"
        archive = pack(tmp_path, {"a.png": b"other"})
        os.utime(archive, ns=(5, 5))
        assert archives.open_file(path).read() == b"other"
        assert archives.stat(path) != before

    def test_many_threads_read_at_once(self, tmp_path: Path, pack: Pack) -> None:
        files = {f"{number}.png": os.urandom(20_000) for number in range(40)}
        archive = pack(tmp_path, files)
        with ThreadPoolExecutor(8) as pool:
            read = pool.map(lambda name: archives.open_file(str(archive / name)).read(), [*files] * 4)
            assert [*read] == [*files.values()] * 4

    def test_members_too_large_for_memory_are_refused(
        self, tmp_path: Path, pack: Pack, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        archive = pack(tmp_path, FILES)
        monkeypatch.setattr(archives, "LARGEST", 2999)
        with pytest.raises(OSError, match=r"3,000 bytes in an archive.*unpack it"):
            archives.open_file(str(archive / "sub" / "b.png"))

    def test_what_is_no_archive_says_so(self, tmp_path: Path, pack: Pack) -> None:
        archive = pack(tmp_path, FILES)
        archive.write_bytes(b"no archive at all")
        with pytest.raises(OSError, match="not an archive, or damaged"):
            [*archives.below(str(archive))]
        with pytest.raises(SourceError, match=r"photos\.(zip|tar) cannot be read: not an archive"):
            pictures(str(archive))

    def test_a_cut_archive_is_damaged(self, tmp_path: Path, pack: Pack) -> None:
        archive = pack(tmp_path, {"a.png": os.urandom(5000), "b.png": os.urandom(50_000)})
        archive.write_bytes(archive.read_bytes()[:20_000])
        with pytest.raises(OSError, match="not an archive, or damaged"):
            archives.open_file(str(archive / "b.png"))

    def test_names_that_lead_out_are_left_out(self, tmp_path: Path, pack: Pack) -> None:
        archive = pack(tmp_path, {"../evil.png": b"x", "/top.png": b"y", "a/./b.png": b"z"})
        names = {os.path.relpath(path, archive) for path in archives.below(str(archive))}
        assert names == {"top.png", os.path.join("a", "b.png")}


@both
class TestSources:
    def test_an_archive_is_a_folder(self, tmp_path: Path, pack: Pack) -> None:
        archive = pack(tmp_path, {**FILES, "__MACOSX/a.png": b"junk", ".hidden/b.png": b"junk"})
        found = pictures(str(archive))
        assert [item.key for item in found.items] == ["a", "sub/b", "sub/deep/c é"]
        assert found.items[0].path == str(archive / "a.png")
        assert found.root == str(archive)
        assert found.ignored == {".txt": 1}
        assert found.default_output == str(tmp_path / "photos-segmented")

    def test_parts_of_it_are_named_as_parts_of_a_folder(self, tmp_path: Path, pack: Pack) -> None:
        archive = pack(tmp_path, FILES)
        assert [item.key for item in pictures(f"{archive.name}/sub", cwd=tmp_path).items] == ["b", "deep/c é"]
        single = pictures(f"{archive.name}/sub/b.png", cwd=tmp_path)
        assert [item.key for item in single.items] == ["b"]
        assert single.default_output == str(tmp_path / "photos-segmented")
        (tmp_path / "list.txt").write_text(f"{archive.name}\n{archive.name}/a.png\n", encoding="utf-8")
        listed = pictures("@list.txt", cwd=tmp_path)
        assert len(listed.items) == 3
        assert listed.duplicates == 1

    def test_archives_beside_folders(self, tmp_path: Path, pack: Pack) -> None:
        archive = pack(tmp_path, FILES)
        (tmp_path / "more").mkdir()
        (tmp_path / "more" / "a.png").write_bytes(b"x")
        found = pictures(str(archive), str(tmp_path / "more"))
        assert [item.key for item in found.items] == [
            "more/a",
            *(f"{archive.name}/{key}" for key in ("a", "sub/b", "sub/deep/c é")),
        ]

    def test_one_without_pictures_says_what_it_holds(self, tmp_path: Path, pack: Pack) -> None:
        archive = pack(tmp_path, {"a.txt": b"", "b.txt": b""})
        with pytest.raises(SourceError, match=r"holds 0 pictures; 2 \.txt"):
            pictures(str(archive))

    def test_within_a_folder_it_is_a_file_like_others(self, tmp_path: Path, pack: Pack) -> None:
        archive = pack(tmp_path, FILES)
        (tmp_path / "a.png").write_bytes(b"x")
        found = pictures(str(tmp_path))
        assert [item.key for item in found.items] == ["a"]
        assert found.ignored == {archive.suffix: 1}


def test_a_folder_may_be_called_like_an_archive(tmp_path: Path) -> None:
    folder = tmp_path / "photos.zip"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"x")
    assert [item.key for item in pictures(str(folder)).items] == ["a"]
    with archives.open_file(str(folder / "a.png")) as file:
        assert file.read() == b"x"
    assert archives.archive_of(str(folder / "a.png")) == ""


@pytest.mark.parametrize("name", ["photos.tar.gz", "photos.tgz"])
def test_a_compressed_tar_says_what_to_do(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x1f\x8b")
    with pytest.raises(SourceError, match="only from its front") as caught:
        pictures(str(tmp_path / name))
    assert "gunzip" in caught.value.hint


def test_a_changed_byte_in_a_zip_is_noticed(tmp_path: Path) -> None:
    archive = pack_zip(tmp_path, {"a.png": os.urandom(5000), "b.png": os.urandom(50_000)})
    data = bytearray(archive.read_bytes())
    data[20_000] ^= 1
    archive.write_bytes(data)
    assert len(archives.open_file(str(archive / "a.png")).read()) == 5000
    with pytest.raises(OSError, match="damaged in its archive"):
        archives.open_file(str(archive / "b.png"))


def test_an_encrypted_member_says_so(tmp_path: Path) -> None:
    archive = pack_zip(tmp_path, {"a.png": b"secret"})
    data = bytearray(archive.read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + flags] |= 1
    archive.write_bytes(data)
    with pytest.raises(OSError, match=r"encrypted"):
        archives.open_file(str(archive / "a.png"))


def test_many_files_are_looked_at_as_one_is(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "sub/c.png", "photos.zip.d/x.png", "cells.zarr/.zattrs", "cells.zarr/0/0"):
        path = tmp_path / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    (tmp_path / "files" / "folder.zarr").mkdir()
    zipped, tarred = pack_zip(tmp_path, FILES), pack_tar(tmp_path, FILES)
    names = [
        *(
            str(tmp_path / "files" / name)
            for name in ("a.png", "b.png", "gone.png", "sub/c.png", "photos.zip.d/x.png")
        ),
        *(str(tmp_path / "files" / name) for name in ("cells.zarr", "folder.zarr", "a.png/b", "\0")),
        *(str(archive / name) for archive in (zipped, tarred) for name in ("a.png", "sub/b.png", "gone.png")),
        "gone.png",
        "webcam:0",
        "/",
    ]

    def alone(path: str) -> tuple[int, int] | None:
        try:
            return archives.stat(path)
        except (OSError, ValueError):
            return None

    found = list(archives.stat_each(names))
    assert found == [alone(name) for name in names]
    assert found[0] is not None
    assert found[2] is None


def test_a_small_file_is_read_at_once_a_large_one_as_it_is_wanted(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    for size in (0, 1, 99, 100, 101, 5000):
        data = os.urandom(size)
        path.write_bytes(data)
        with cast("BinaryIO", archives.open_regular(str(path), 100)) as file:
            path.write_bytes(b"other")  # what is in memory does not change
            assert isinstance(file, io.BytesIO) == (0 < size <= 100)
            assert file.read() == (data if 0 < size <= 100 else b"other")
    assert archives.open_regular(str(tmp_path), 100) is None
    with pytest.raises(FileNotFoundError):
        archives.open_regular(str(tmp_path / "none.png"), 100)


def test_a_file_that_comes_in_pieces_or_is_changed_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = tmp_path / "a.png", os.read
    path.write_bytes(bytes(range(200)))
    monkeypatch.setattr(archives.os, "read", lambda file, size: real(file, min(size, 30)))
    with cast("BinaryIO", archives.open_regular(str(path), 1000)) as file:
        assert file.read() == bytes(range(200))

    for length in (500, 30):

        def read(file: int, size: int, length: int = length) -> bytes:
            os.truncate(path, length)
            return real(file, size)

        monkeypatch.setattr(archives.os, "read", read)
        with cast("BinaryIO", archives.open_regular(str(path), 1000)) as file:
            assert file.read() == (bytes(range(200)) + bytes(300))[:length]
