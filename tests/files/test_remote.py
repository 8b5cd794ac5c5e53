"""Addresses: which names are some, how they are written, over HTTP listed, read, retried and explained."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.servers import FolderServer, keep_home, serve
from tests.helpers.waiting import PATIENCE
from unet_batch.errors import SourceError, UsageError
from unet_batch.files import archives, naming, remote, roots
from unet_batch.files.sources import Sources, collect
from unet_batch.media import images

pytest.importorskip("aiohttp")
fsspec = pytest.importorskip("fsspec")
# The loop of fsspec, of aiohttp: https://github.com/aio-libs/aiohttp/issues/5426
quiet = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_home(monkeypatch, tmp_path / "cache")
    monkeypatch.setattr(remote, "_PAUSES", (0.0, 0.0, 0.0))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FolderServer]:
    photos = tmp_path / "web" / "photos"
    for name in ("a.jpg", "b c.png", "sub/d.jpg", "sub/notes.txt"):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).write_bytes(name.encode() * 100)
    with serve(tmp_path / "web") as server:
        yield server
    remote.release_all()


def find(*sources: str) -> Sources:
    return collect(sources, is_picture=lambda path: path.endswith((".jpg", ".png")), live=naming.live_name)


@pytest.mark.parametrize(
    "path", [r"C:\photos", "C:/photos", "c://photos", "/data/s3://x", "a:b", "photos", ""]
)
def test_files_and_drives_are_no_addresses(path: str) -> None:
    assert not remote.is_remote(path)


@pytest.mark.parametrize(
    "path", ["s3://bucket/a.jpg", "gs://b", "az://c/d", "https://host/a.jpg", "S3://b/c"]
)
def test_addresses_are(path: str) -> None:
    assert remote.is_remote(path)


def test_cameras_stay_cameras_and_pictures_of_the_web_are_files() -> None:
    live = (
        "rtsp://host/a.jpg",
        "http://host/video.mp4",
        "https://host/cam",
        "http://cam/mjpg/video.cgi?x=a.jpg",
    )
    files = ("https://host/a.JPG", "http://host/photos/", "https://host/a.tif?Signature=x")
    assert [naming.is_live(source) for source in (*live, *files)] == [True] * 4 + [False] * 3


def test_a_signature_is_asked_with_and_told_to_nobody() -> None:
    url = remote.normalize("https://host/a.jpg?X-Amz-Date=1&X-Amz-Signature=secret")
    assert url == "https://host/a.jpg"
    assert remote._with_secrets(url).endswith("a.jpg?X-Amz-Date=1&X-Amz-Signature=secret")
    assert remote.normalize("https://host/a b.jpg?sig=x") == "https://host/a%20b.jpg"
    assert remote._with_secrets("https://host/a%20b.jpg").endswith("?sig=x")
    assert naming.shown("https://me:word@host/a.jpg?sig=secret") == "https://host/a.jpg"
    assert remote.normalize("https://host/a.jpg?page=2") == "https://host/a.jpg?page=2"


steps = st.lists(st.sampled_from(["a", "b", "a-b", "a b"]), max_size=3)


@given(st.lists(steps, min_size=1, max_size=5))
def test_the_common_folder_of_addresses_is_the_deepest(paths: list[list[str]]) -> None:
    urls = ["/".join(["s3://bucket", *path]) for path in paths]
    common = roots.common_folder(urls)
    assert all(roots.is_below(url, common) for url in urls)
    deeper = {url[len(common) + 1 :].split("/")[0] for url in urls}
    assert len(deeper) > 1 or common in urls
    tops = roots.outermost(urls)
    assert all(sum(roots.is_below(url, top) for top in tops) == 1 for url in urls)


def test_buckets_and_folders_have_no_common_folder() -> None:
    assert roots.common_folder(["s3://a/x", "s3://b/x"]) == ""
    assert roots.common_folder(["s3://a/x", "/data/x"]) == ""
    assert roots.common_folder(["s3://a/x", "gs://a/x"]) == ""


def test_results_of_addresses_lie_here(tmp_path: Path) -> None:
    here = str(tmp_path)
    assert roots.default_output("s3://b/photos", is_named=True, cwd=here) == str(
        tmp_path / "photos-segmented"
    )
    assert roots.default_output("s3://b/photos", is_named=False, cwd=here) == str(tmp_path / "segmented")


@quiet
def test_a_folder_of_the_web_is_listed(server: FolderServer) -> None:
    found = find(f"{server.url}/photos/")
    assert [item.key for item in found.items] == ["a", "b c", "sub/d"]
    assert found.root == f"{server.url}/photos"
    assert found.ignored == {".txt": 1}
    assert (
        found.items[1].path
        == f"{server.url}/photos/b%20c.png"
        == remote.normalize(f"{server.url}/photos/b c.png")
    )
    with archives.open_file(found.items[1].path) as file:
        assert file.read() == b"b c.png" * 100


@quiet
def test_a_password_opens_a_folder_and_all_below_and_is_told_to_nobody(server: FolderServer) -> None:
    url = server.url.replace("://", "://me:word@")
    found = find(f"{url}/photos/")
    assert [item.path for item in found.items][::2] == [
        f"{server.url}/photos/{n}.jpg" for n in ("a", "sub/d")
    ]
    for item in found.items:
        archives.open_file(item.path).close()
    assert server.logins == {"Basic bWU6d29yZA=="}
    remote._logins.clear()


@quiet
def test_an_archive_in_a_bucket_is_refused() -> None:
    fsspec.filesystem("memory").pipe_file("/photos.zip", b"x")
    with pytest.raises(SourceError, match=r"memory://photos.zip: archives are read from disks only"):
        find("memory://photos.zip")


def test_all_that_is_a_picture_by_its_name_is_one_on_the_web() -> None:
    names = images.EXTENSIONS - {"zarr"}  # a folder
    assert [name for name in names if naming.is_live(f"https://host/a.{name}")] == []


@quiet
def test_a_list_names_addresses_and_costs_one_look_for_each(server: FolderServer, tmp_path: Path) -> None:
    names = [f"{server.url}/photos/a.jpg", f"{server.url}/photos/sub/d.jpg", f"{server.url}/photos/none.jpg"]
    (tmp_path / "list.txt").write_text("\n".join(names))
    server.delay = 0.01
    found = find(f"@{tmp_path / 'list.txt'}")
    assert [item.path for item in found.items] == [names[0], names[2], names[1]]
    assert archives.stat(names[0]).size == 500
    assert server.asked["HEAD", "/photos/a.jpg"] == 1


@quiet
def test_a_changed_file_has_another_version(server: FolderServer, tmp_path: Path) -> None:
    url = f"{server.url}/photos/a.jpg"
    before = archives.stat(url)
    os.utime(tmp_path / "web/photos/a.jpg", (1e9, 1e9))
    remote._versions.clear()
    assert archives.stat(url) != before


@quiet
def test_a_busy_server_and_a_torn_body_are_asked_again(server: FolderServer) -> None:
    server.busy, server.torn["/photos/a.jpg"] = 3, 2
    for name in ("a.jpg", "sub/d.jpg", "a.jpg", "b%20c.png"):
        url = f"{server.url}/photos/{name}"
        remote.fetch(url)
        with archives.open_file(url) as file:
            assert len(file.read()) == len(name.replace("%20", " ")) * 100
        remote.release(url)


@quiet
def test_what_stays_torn_is_an_error_that_passes(server: FolderServer) -> None:
    server.torn["/photos/a.jpg"] = 99
    url = f"{server.url}/photos/a.jpg"
    remote.fetch(url)
    with pytest.raises(OSError, match="the connection failed") as caught:
        archives.open_file(url)
    assert remote.is_passing(caught.value)
    assert server.asked["GET", "/photos/a.jpg"] == 4


@quiet
def test_what_is_not_there_is_asked_for_once(server: FolderServer) -> None:
    url = f"{server.url}/photos/none.jpg"
    remote.fetch(url)
    with pytest.raises(FileNotFoundError, match="no such object"):
        archives.open_file(url)
    assert server.asked["GET", "/photos/none.jpg"] == 1
    assert not archives.exists(url)


@quiet
def test_many_files_are_on_their_way_at_once_and_come_in_order(server: FolderServer, tmp_path: Path) -> None:
    names = [f"{number:02}.jpg" for number in range(40)]
    for name in names:
        (tmp_path / "web" / name).write_bytes(name.encode())
    server.meeting = threading.Barrier(9)
    urls = [f"{server.url}/{name}" for name in names]
    seen = []
    for url in remote.read_ahead([*urls[:3], "/local", *urls[3:]], str):
        if url != "/local":
            with archives.open_file(url) as file:
                seen.append(file.read().decode())
        remote.release(url)
    assert seen == names
    assert server.at_once > 8
    assert not list(Path(remote.cache_folder("sources")).iterdir())


@quiet
def test_what_is_here_comes_before_what_is_waited_for(server: FolderServer) -> None:
    urls = [f"{server.url}/photos/{name}" for name in ("a.jpg", "b%20c.png", "sub/d.jpg")]
    handed: SimpleQueue[str | None] = SimpleQueue()
    ahead = remote.read_ahead(iter(handed.get, None), str, handed.empty)
    for few in (urls[:2], urls[2:]):
        for url in few:
            handed.put(url)
        assert [next(ahead) for _ in few] == few
    handed.put(None)
    assert next(ahead, "the end") == "the end"


def test_another_process_learns_what_it_needs_of_an_address() -> None:
    folder = remote.normalize("https://me:word@host/photos/")
    signed = remote.normalize("https://me:word@host/photos/a.jpg?X-Amz-Signature=secret")
    other = remote.normalize("https://me:word@host/photos/b.jpg?X-Amz-Signature=other")
    remote.remember(signed, {"size": 7, "ETag": "x"})
    asked, state = remote._with_secrets(signed), remote.stat(signed)
    known = pickle.loads(pickle.dumps(remote.known_of([signed, "/local/a.jpg"])))
    tables = (remote._versions, remote._signatures, remote._logins, remote._folders)
    for table in tables:
        table.clear()
    remote.take_over(known)
    assert remote._with_secrets(signed) == asked == "https://me:word@host/photos/a.jpg?X-Amz-Signature=secret"
    assert (remote.stat(signed), remote.is_folder(folder)) == (state, True)
    assert "other" not in remote._with_secrets(other), "only what is asked for goes along"
    assert remote.known_of(["/local/a.jpg"]) is None
    for table in tables:
        table.clear()


@quiet
def test_one_who_stops_early_waits_for_no_more(server: FolderServer) -> None:
    server.delay = 0.05
    ahead = remote.read_ahead([f"{server.url}/photos/{n}.jpg" for n in range(200)], str)
    next(ahead)
    ahead.close()
    assert sum(server.asked.values()) < 100
    assert not any(thread.name.startswith("fetch") for thread in threading.enumerate())


def test_what_is_not_installed_is_said_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote.importlib.util, "find_spec", lambda name: None)
    remote._connect.cache_clear()
    with pytest.raises(UsageError, match="gs:// needs fsspec, which is not installed") as caught:
        remote.connect("gs://bucket/x")
    assert caught.value.hint == 'pip install "unet-batch[cloud]" gcsfs'
    with pytest.raises(UsageError, match="s3:// needs") as caught:
        find("s3://bucket/x")
    assert caught.value.hint == 'pip install "unet-batch[cloud]"'
    remote._connect.cache_clear()


def test_unknown_protocols_are_named() -> None:
    with pytest.raises(UsageError, match="nonsense:// is not known"):
        find("nonsense://bucket/x")


@quiet
def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    with serve(tmp_path) as server:
        url = server.url
    with pytest.raises(
        SourceError, match=r"http://127.0.0.1:\d+/photos/ cannot be read: the connection failed"
    ):
        find(f"{url}/photos/")


def test_without_addresses_fsspec_is_not_imported(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    code = (
        "import sys; from unet_batch.run.plan import prepare; from unet_batch.run.options import RunOptions;"
        f"prepare(RunOptions(({str(tmp_path)!r},)));"
        "print([name for name in sys.modules if name.partition('.')[0] in ('fsspec', 's3fs', 'aiohttp')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=PATIENCE
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "value",
    ["2026-11-29T11:05:00.000Z", "2026-11-29T11:05:00Z", "Sun, 29 Nov 2026 11:05:00 GMT", 1795950300.5],
)
def test_times_of_s3_are_read_as_botocore_reads_them(value: object) -> None:
    utils = pytest.importorskip("botocore.utils")
    assert remote.parse_time(value) == utils.parse_timestamp(value)
