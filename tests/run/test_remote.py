"""Runs over buckets and the web: S3 by moto's server, on this machine."""

from __future__ import annotations

import io
import itertools
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.helpers.crews import crew, one_first, open_fake, slowly
from tests.helpers.footage import Footage
from tests.helpers.models import fake_file
from tests.helpers.observers import observing
from tests.helpers.runs import done_lines, many, write
from tests.helpers.servers import BusyGate, keep_home, serve, serving
from tests.helpers.systems import needs_posix
from tests.helpers.waiting import until
from unet_batch.errors import FolderInUse, OutputError, SourceError, UsageError
from unet_batch.files import remote, staging
from unet_batch.files.sources import check_names
from unet_batch.inference.segmenter import Segmenter
from unet_batch.review.report import write_report
from unet_batch.run.execute import execute
from unet_batch.run.merge import merge
from unet_batch.run.options import PageRange, RunOptions
from unet_batch.run.plan import prepare, resume
from unet_batch.run.recipe import recipe_of
from unet_batch.run.report import RunReport
from unet_batch.run.session import Order, Session, outline
from unet_batch.run.shard import Shard
from unet_batch.run.watch import look
from unet_batch.testing import FakeBackend
from unet_batch.types import Item

pytest.importorskip("s3fs")
moto = pytest.importorskip("moto.server")
pytestmark = [
    pytest.mark.xdist_group("s3"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty bucket, as the start of an address."""
    keep_home(monkeypatch, tmp_path / "cache")
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setattr(remote, "_PAUSES", (0.0, 0.0, 0.0))
    monkeypatch.setattr(staging, "_PAUSES", (0.0, 0.0))
    remote._connect.cache_clear()
    name = f"s3://bucket-{os.getpid()}-{time.time_ns()}"
    remote.connect(name).mkdir(name)
    yield name
    remote._connect.cache_clear()
    remote._versions.clear()


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (24, 36, 3), np.uint8)


def png(seed: int) -> bytes:
    data = io.BytesIO()
    Image.fromarray(noise(seed)).save(data, "png")
    return data.getvalue()


def put(url: str, data: bytes) -> None:
    remote.connect(url).pipe_file(url, data)


def stored(url: str) -> dict[str, bytes]:
    """What a folder of a bucket holds, hidden objects too."""
    found = remote.connect(url).find(url, detail=False)
    start = len(url.partition("://")[2]) + 1
    return {name[start:]: remote.connect(url).cat_file(name) for name in found}


@pytest.fixture
def photos(bucket: str, tmp_path: Path) -> str:
    """Seven pictures, as objects and as files."""
    for number in range(7):
        write(tmp_path / "photos" / "sub" / f"{number}.png", noise(number))
        put(f"{bucket}/photos/sub/{number}.png", png(number))
    return f"{bucket}/photos"


def segment(*sources: str, output: str, backend: FakeBackend | None = None, **options: Any) -> RunReport:
    isolate = options.get("isolate", False)
    plan = prepare(RunOptions(tuple(sources), output, **options))
    with Segmenter(backend or FakeBackend(), workers=2, isolate=isolate) as segmenter:
        return execute(plan, segmenter)


@needs_posix
def test_several_processes_read_what_lies_behind_addresses(photos: str, bucket: str, tmp_path: Path) -> None:
    with open_fake() as segmenter, crew(slowly, slowly) as hands:
        for name, by in (("one", segmenter), ("two", hands)):
            report = execute(prepare(RunOptions((photos,), f"{bucket}/{name}")), by)
            assert (report.status, report.done) == ("done", 7)
        one, two = (stored(f"{bucket}/{name}/masks") for name in ("one", "two"))
        assert len(one) == 7
        assert one == two
        with serve(tmp_path / "photos") as server:
            source = server.url.replace("://", "://me:word@") + "/"
            report = execute(prepare(RunOptions((source,), str(tmp_path / "out"))), hands)
        assert (report.status, report.done) == ("done", 7)
        assert list(masks(tmp_path / "out").values()) == list(one.values())
        assert server.logins == {"Basic bWU6d29yZA=="}, "all know the password"
        heads = [count for (method, _), count in server.asked.items() if method == "HEAD"]
        assert heads == [1] * 7, "what is known is asked for once"
    assert not os.listdir(remote.cache_folder("sources"))
    remote._logins.clear()


def test_a_stop_leaves_no_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_home(monkeypatch, tmp_path / "cache")
    (tmp_path / "out").mkdir()
    with serve(many(tmp_path / "photos", 60)) as server:
        plan = prepare(RunOptions((f"{server.url}/",), str(tmp_path / "out")))
        (tmp_path / "out" / "manifest.jsonl").touch()
        session = Session(open_fake)
        session.begin(outline(plan), recipe_of(session.segmenter, None))
        told = session.exchange(Order(plan.items))
        assert len(told.outcomes) < 20
        while not told.is_over:
            told = session.exchange(Order(stop="SIGTERM"))
        session.segmenter.close()
    assert not os.listdir(remote.cache_folder("sources"))


def masks(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("*.png"))}


def pictures_of(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in files.items() if name.endswith(".png")}


def test_the_same_masks_as_of_the_files(photos: str, tmp_path: Path) -> None:
    put(f"{photos}/broken.png", b"no picture")
    (tmp_path / "photos" / "broken.png").write_bytes(b"no picture")
    plain = segment(str(tmp_path / "photos"), output=str(tmp_path / "plain"))
    report = segment(photos, output=str(tmp_path / "out"))
    assert (report.done, report.failed) == (plain.done, plain.failed) == (7, 1)
    assert masks(tmp_path / "out") == masks(tmp_path / "plain")
    assert report.failures[0].path == f"{photos}/broken.png"
    assert report.failures[0].message.startswith(f"{photos}/broken.png: ")
    assert not list(Path(remote.cache_folder("sources")).iterdir())


def test_out_and_in_at_once_and_a_second_run_finds_it_done(photos: str, tmp_path: Path) -> None:
    put(f"{photos}/sub/bad.png", b"bad")
    out = f"{photos}/masks"  # below the sources
    report = segment(photos, output=out)
    segment(str(tmp_path / "photos"), output=str(tmp_path / "plain"))
    files = stored(out)
    assert pictures_of(files) == masks(tmp_path / "plain")
    assert sorted(set(files) - set(pictures_of(files))) == ["errors.jsonl", "manifest.jsonl", "run.json"]
    assert json.loads(files["run.json"])["output"] == out == report.output
    assert json.loads(files["run.json"])["status"] == "failures"
    put(f"{photos}/sub/3.png", png(30))
    put(f"{photos}/sub/bad.png", png(31))
    again = segment(photos, output=out)
    assert again.states == {"done": 6, "changed": 1, "failed": 1}
    assert "errors.jsonl" not in stored(out)
    # Another machine, or one whose cache was emptied, knows as much.

    shutil.rmtree(tmp_path / "cache")
    assert segment(photos, output=out).states == {"done": 8}


def test_an_output_that_was_deleted_or_cut_short_is_made_again(photos: str) -> None:
    out = f"{remote.top(photos)}/masks"
    segment(photos, output=out)
    before = pictures_of(stored(out))
    remote.connect(out).rm(f"{out}/masks/sub/1.png")
    put(f"{out}/masks/sub/2.png", before["masks/sub/2.png"][:-3])
    put(f"{out}/masks/sub/3.png", before["masks/sub/3.png"][:-12] + b"more" + before["masks/sub/3.png"][-12:])
    assert segment(photos, output=out).states == {"done": 4, "lost": 2, "edited": 1}
    after = pictures_of(stored(out))
    assert {name for name in after if after[name] != before[name]} == {"masks/sub/3.png"}


@pytest.mark.parametrize("pattern", ["photos/**/[0-2].png", "photos/s*/[012].png", "p*s/sub/[!3-9].png"])
def test_patterns(photos: str, pattern: str, tmp_path: Path) -> None:
    plan = prepare(RunOptions((f"{remote.top(photos)}/{pattern}",), str(tmp_path / "out")))
    assert [item.path for item in plan.items] == [f"{photos}/sub/{number}.png" for number in range(3)]


def test_a_bucket_and_a_folder_in_one_run(photos: str, tmp_path: Path) -> None:
    report = segment(photos, str(tmp_path / "photos"), output=str(tmp_path / "out"))
    assert report.done == 14
    assert segment(photos, str(tmp_path / "photos"), output=str(tmp_path / "out")).states == {"done": 14}


def test_in_worker_processes(photos: str, tmp_path: Path) -> None:
    out = f"{remote.top(photos)}/masks"
    report = segment(photos, output=out, isolate=True, save=("mask", "overlay"))
    segment(str(tmp_path / "photos"), output=str(tmp_path / "plain"), save=("mask", "overlay"))
    assert (report.done, report.failed) == (7, 0)
    assert pictures_of(stored(out)) == masks(tmp_path / "plain")
    assert not list(Path(remote.cache_folder("sources")).iterdir())


def test_what_cannot_be_copied_is_not_asked_for_by_workers(tmp_path: Path, bucket: str) -> None:
    write(tmp_path / "web" / "a.png", noise(1))
    (tmp_path / "list.txt").write_text("")
    asked = []
    for isolate in (False, True):
        with serve(tmp_path / "web") as server:
            (tmp_path / "list.txt").write_text(f"{server.url}/a.png\n{server.url}/none.png\n")
            report = segment(
                f"@{tmp_path / 'list.txt'}", output=str(tmp_path / f"{isolate}"), isolate=isolate
            )
            assert (report.done, report.failures[0].message) == (1, f"{server.url}/none.png: no such file")
        asked.append(server.asked)
    assert asked[0] == asked[1]


def test_names_that_no_file_can_have_are_failures_and_empty_folders_are_nothing(
    photos: str, tmp_path: Path
) -> None:
    put(f"{photos}//odd.png", png(1))
    put(f"{photos}/empty/", b"")
    report = segment(photos, output=str(tmp_path / "out"))
    assert (report.done, report.unreadable) == (7, 1)
    assert report.failures[0].path == f"{photos}//odd.png"


def test_what_is_wrong_with_a_source_is_said(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    put(f"{bucket}/a/x.txt", b"x")
    for source, words in {
        f"{bucket}/none.jpg": "does not exist",
        "s3://no-such-bucket-at-all/x/": "there is no such bucket",
        f"{bucket}/a": "holds 0 pictures; 1 .txt",
        f"{bucket}/a/*.jpg": "matches 0 pictures",
    }.items():
        with pytest.raises(SourceError, match=words):
            prepare(RunOptions((source,), None))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    remote._connect.cache_clear()
    with pytest.raises(SourceError, match=r"s3://.*cannot be read: no credentials: set AWS_ACCESS_KEY_ID"):
        check_names([f"{bucket}/a"])


def test_what_is_wrong_with_an_output_is_said(photos: str, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"no-such-bucket-at-all/x cannot be used.*no such bucket"):
        segment(photos, output="s3://no-such-bucket-at-all/x")
    with pytest.raises(UsageError, match="the web is read only"):
        segment(photos, output="https://host/masks")
    with pytest.raises(UsageError, match="called like a file"):
        segment(photos, output=f"{photos}.png")
    with pytest.raises(UsageError, match="is a source and cannot be the output folder"):
        segment(photos, output=f"{photos}/")


def test_another_machine_is_kept_away_until_it_is_long_silent(
    photos: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = f"{remote.top(photos)}/masks"
    owner = {"token": "x", "machine": "other", "host": "elsewhere", "pid": 7, "renewed": time.time() - 20}
    put(f"{out}/.run.lock", json.dumps(owner).encode())
    with pytest.raises(FolderInUse, match=r"process 7 on elsewhere, last heard of 2\d s ago"):
        segment(photos, output=out)
    put(f"{out}/.run.lock", json.dumps({**owner, "renewed": time.time() - 301}).encode())
    assert segment(photos, output=out).done == 7
    assert ".run.lock" not in stored(out)


def test_of_two_who_take_the_lock_at_once_never_both_get_it(photos: str, tmp_path: Path) -> None:
    out = f"{remote.top(photos)}/masks"
    got: list[int] = []
    refused: list[int] = []

    def take(number: int) -> None:
        folder = staging.RemoteFolder(out)
        folder.folder = str(tmp_path / f"machine-{number}")
        try:
            with folder.session():
                got.append(number)
                until(lambda: len(got) + len(refused) == 4)  # or the next one could have it afterwards
        except FolderInUse:
            refused.append(number)

    threads = [threading.Thread(target=take, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1


def test_who_saw_no_lock_does_not_overwrite_one(
    photos: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (staging.RemoteFolder(f"{remote.top(photos)}/masks") for _ in range(2))
    second.folder = str(tmp_path / "another machine")
    looks = iter([None])
    with first.session():
        holder = staging._Lock._holder
        monkeypatch.setattr(
            staging._Lock, "_holder", lambda lock, name: next(looks, "x") and holder(lock, name)
        )
        with pytest.raises(FolderInUse), second.session():
            pass


def test_each_line_of_the_manifest_is_uploaded_once(photos: str) -> None:
    folder = staging.RemoteFolder(f"{remote.top(photos)}/masks")
    with folder.session():
        folder.fetch()
        manifest = Path(folder.folder) / "manifest.jsonl"
        lines = [b'{"at": %d}\n' % number for number in range(6)]
        for number in (0, 2, 4):
            with manifest.open("ab") as file:
                file.write(lines[number] + lines[number + 1][:5])
            folder.publish()
            with manifest.open("ab") as file:
                file.write(lines[number + 1][5:])
        parts = stored(f"{folder.url}/manifest-parts")
        assert sorted(b"".join(parts.values()).splitlines(keepends=True)) == lines[:5]
    assert stored(folder.url) == {"manifest.jsonl": b"".join(lines)}


def test_who_was_taken_over_writes_no_more(photos: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "SECONDS", 0.02)
    monkeypatch.setattr(staging, "_RENEW", 0.0)
    out = f"{remote.top(photos)}/masks"
    folder = staging.RemoteFolder(out)
    taken_over = pytest.raises(FolderInUse, match="another run has taken over")
    with taken_over, folder.session():  # at the end, too: nothing is on record
        folder.fetch()
        other = json.dumps({"token": "another's", "renewed": time.time()}).encode()
        # Between a look and a renewal it is lost
        until(lambda: folder._lost or put(f"{out}/.run.lock", other))
        with pytest.raises(FolderInUse):
            folder.upload(["masks/a.png"])
    assert ".run.lock" in stored(out), "it is not ours to remove"


@needs_posix
def test_nor_do_its_processes(photos: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "SECONDS", 0.02)
    monkeypatch.setattr(staging, "_RENEW", 0.0)
    out = f"{remote.top(photos)}/masks"
    plan = prepare(RunOptions((photos,), out))
    other = json.dumps({"token": "another's", "renewed": time.time()}).encode()
    store = plan.outputs.store
    assert store is not None

    def lose(*outcome: object) -> None:
        until(lambda: store._lost or put(f"{out}/.run.lock", other))
        (tmp_path / "go").touch()

    taken_over = pytest.raises(FolderInUse, match="another run has taken over")
    with crew(partial(one_first, tmp_path)) as hands, taken_over:
        execute(plan, hands, observing(outcome=lose))
    assert sum(done_lines(Path(store.folder)).values()) == 1


def test_shards_from_two_machines_are_joined(
    photos: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = f"{remote.top(photos)}/masks"
    for number in (1, 2):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"cache-{number}"))
        segment(photos, output=out, shard=Shard.parse(f"{number}/2", {}))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache-3"))
    report = merge(out)
    assert (report.done, report.output) == (7, out)
    names = sorted(name for name in stored(out) if not name.startswith("masks/"))
    assert names == ["manifest.jsonl", "run.json"]
    assert segment(photos, output=out).states == {"done": 7}


def test_shards_of_folders_list_and_fetch_their_own(
    photos: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unet_batch.run.shard.FOLDERS", 2)
    out = f"{remote.top(photos)}/masks"
    for number in range(7, 13):
        put(f"{photos}/{number}/{number}.png", png(number))
    fetched: list[str] = []
    real = staging.RemoteFolder._read

    def read(self: staging.RemoteFolder, files: Sequence[str]) -> dict[str, bytes]:
        fetched.extend(files)
        return real(self, files)

    monkeypatch.setattr(staging.RemoteFolder, "_read", read)
    for attempt in range(2):
        reports = []
        for number in (1, 2):
            monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"cache-{number}"))
            fetched.clear()
            reports.append(segment(photos, output=out, shard=Shard(number, 2)))
            assert [name for name in fetched if f"-{3 - number}-of-2" in name] == []
        assert sum(report.done for report in reports) == (0 if attempt else 13)
    assert merge(out).found == 13


def test_what_a_shard_is_about_to_publish_stays(photos: str) -> None:
    """One that ends takes only its own parts of manifests away."""
    out = f"{remote.top(photos)}/masks"
    part = "manifest-parts/manifest-2-of-2-1234567890123-0a1b.jsonl"

    def begin(backend_of_another: Any) -> Any:
        put(f"{out}/{part}", b'{"v":1,"recipe":"x","made_with":"model","at":5.0}\n')
        return np.asarray(backend_of_another.mean(axis=3), np.uint8)

    segment(photos, output=out, shard=Shard(1, 2), backend=FakeBackend(answer=begin))
    assert part in stored(out)


def test_a_dry_run_leaves_the_bucket_as_it_is(photos: str) -> None:
    out = f"{remote.top(photos)}/masks"
    segment(photos, output=out)
    before = stored(out)
    plan = prepare(RunOptions((photos,), out))
    assert plan.outputs.store is not None
    manifest = os.path.join(plan.outputs.folder, "manifest.jsonl")
    state = os.stat(manifest)
    with Segmenter(FakeBackend(), workers=1) as segmenter:
        assert resume(plan, recipe_of(segmenter)).states == {"done": 7}
    assert plan.paths(plan.items[0]) == [f"{out}/masks/sub/0.png"]
    assert stored(out) == before
    assert os.path.samestat(os.stat(manifest), state), "a run that goes on there would take it for gone"


RUN = """
import sys, time
from tests.run.test_remote import FakeBackend, segment
from unet_batch.files import staging
import numpy as np
staging.SECONDS = 0.2
seen = []
def slow(pictures):
    seen.append(len(pictures))
    time.sleep(0.1 if len(seen) < 50 else 600)  # it is not done before it is killed
    return np.where(pictures.mean(3) > 127, 255, 0).astype(np.uint8)
segment(sys.argv[1], output=sys.argv[2], backend=FakeBackend(answer=slow, batch_size=1))
"""


def killed_after(photos: str, out: str, is_enough: Callable[[], bool]) -> None:
    process = subprocess.Popen([sys.executable, "-c", RUN, photos, out])
    until(lambda: process.poll() is not None or is_enough(), 0.1)
    assert process.poll() is None, "it was done before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_after_a_kill_this_machine_knows_all_and_another_one_nearly_all(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, out = f"{bucket}/photos", f"{bucket}/out"
    for number in range(60):
        write(tmp_path / "photos" / f"{number:02}.png", noise(number))
    remote.connect(photos).put(str(tmp_path / "photos") + "/", photos, recursive=True)

    def parts() -> bool:
        return (
            len(remote.connect(out).find(f"{out}/manifest-parts")) > 2
        )  # the first may name the recipe only

    killed_after(photos, out, parts)
    made = len(pictures_of(stored(out)))
    assert 0 < made < 60
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
        with pytest.raises(FolderInUse):
            segment(photos, output=out, backend=FakeBackend(answer=bright))
        remote.connect(out).rm(f"{out}/.run.lock")  # or five minutes
        plan = prepare(RunOptions((photos,), out))
        with Segmenter(FakeBackend(answer=bright), workers=1) as segmenter:
            known = resume(plan, recipe_of(segmenter)).states["done"]
        assert 0 < known <= made
    report = segment(photos, output=out, backend=FakeBackend(answer=bright))
    assert known <= report.states["done"] <= made
    assert report.states["done"] + report.done == 60
    segment(str(tmp_path / "photos"), output=str(tmp_path / "plain"), backend=FakeBackend(answer=bright))
    files = stored(out)
    assert pictures_of(files) == masks(tmp_path / "plain")
    assert not any(name.startswith(("manifest-parts", ".run")) for name in files)


def bright(pictures: np.ndarray) -> np.ndarray:
    return np.where(pictures.mean(3) > 127, 255, 0).astype(np.uint8)


def test_pictures_of_the_web_with_a_server_that_fails(tmp_path: Path, bucket: str) -> None:
    for number in range(12):
        write(tmp_path / "web" / f"{number:02}.png", noise(number))
    segment(str(tmp_path / "web"), output=str(tmp_path / "plain"))
    with serve(tmp_path / "web") as server:
        server.busy, server.torn["/04.png"] = 3, 1
        report = segment(f"{server.url}/", output=str(tmp_path / "out"), retry_pauses=(0.0,))
    assert (report.done, report.failed) == (12, 0)
    assert masks(tmp_path / "out") == masks(tmp_path / "plain")


def test_a_bucket_whose_server_refuses_every_fifth_request(
    photos: str, endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, gate = f"{remote.top(photos)}/out", BusyGate(endpoint)
    with serving(gate):
        monkeypatch.setenv("AWS_ENDPOINT_URL", gate.url)
        remote._connect.cache_clear()
        report = segment(f"{photos}/sub/[12].png", output=out)
        files = pictures_of(stored(out))
    assert (report.done, report.failed) == (2, 0)
    assert gate.refused > 3
    segment(str(tmp_path / "photos"), output=str(tmp_path / "plain"))
    assert (
        files.items()
        <= {name.replace("sub/", ""): data for name, data in masks(tmp_path / "plain").items()}.items()
    )


def test_worker_processes_read_the_copies_of_which_few_lie_here(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "AHEAD", 2)
    most = 0

    def count(item: Item, failure: Any) -> None:
        nonlocal most
        most = max(most, len(os.listdir(remote.cache_folder("sources"))))

    for number in range(60):
        write(tmp_path / "web" / f"{number:02}.png", noise(number))
    with serve(tmp_path / "web") as server:
        plan = prepare(RunOptions((f"{server.url}/",), str(tmp_path / "out"), isolate=True))
        backend = FakeBackend(batch_size=1)
        with Segmenter(backend, workers=1, isolate=True) as segmenter:
            report = execute(plan, segmenter, observing(outcome=count))
    assert (report.done, report.failed) == (60, 0)
    assert {count for (method, path), count in server.asked.items() if method == "GET" and path != "/"} == {1}
    assert 0 < most < 30


def test_a_source_that_vanishes_is_one_failure(photos: str, tmp_path: Path) -> None:
    plan = prepare(RunOptions((photos,), str(tmp_path / "out")))
    remote.connect(photos).rm(f"{photos}/sub/4.png")
    with Segmenter(FakeBackend(), workers=2) as segmenter:
        report = execute(plan, segmenter)
    assert (report.done, report.failed) == (6, 1)
    assert report.failures[0].error == "SourceVanished"


def test_clips_and_stacks_are_copied_here_and_their_outputs_uploaded(bucket: str, tmp_path: Path) -> None:
    folder = tmp_path / "trip"
    folder.mkdir()
    Footage("a.mp4", frames=12).make(folder)
    tifffile.imwrite(
        folder / "stack.tif", np.stack([noise(n)[..., 0] for n in range(4)]), photometric="minisblack"
    )
    remote.connect(bucket).put(str(folder) + "/", f"{bucket}/trip", recursive=True)
    options: dict[str, Any] = {"save": ("mask", "overlay", "frames"), "pages": PageRange.parse("all")}
    plain = segment(str(folder), output=str(tmp_path / "plain"), **options)
    report = segment(f"{bucket}/trip", output=f"{bucket}/out", **options)
    assert (report.done, report.failed, report.frames) == (plain.done, plain.failed, 12) == (2, 0, 12)
    files = {name: data for name, data in stored(f"{bucket}/out").items() if "/" in name}
    expected = {
        path.relative_to(tmp_path / "plain").as_posix(): path.read_bytes()
        for path in (tmp_path / "plain").rglob("*")
        if path.is_file() and path.parent != tmp_path / "plain"
    }
    assert files.keys() == expected.keys()
    assert {name for name in files if files[name] != expected[name]} <= {
        name for name in files if name.startswith("timelines/")
    }
    assert segment(f"{bucket}/trip", output=f"{bucket}/out", **options).states == {"done": 2}
    assert not list(Path(remote.cache_folder("sources")).iterdir())


def test_from_python_and_through_a_pipe_an_address_is_a_picture(photos: str, tmp_path: Path) -> None:
    with Segmenter(FakeBackend(), workers=2) as segmenter:
        here = segmenter(str(tmp_path / "photos" / "sub" / "1.png"))
        assert np.array_equal(segmenter(f"{photos}/sub/1.png"), here)
        results = list(segmenter.stream([f"{photos}/sub/1.png", f"{photos}/sub/none.png"]))
        assert results[0].mask is not None
        assert np.array_equal(results[0].mask, here)
        assert str(results[1].error) == f"{photos}/sub/none.png: no such file"
        with pytest.raises(UsageError, match="only `unet-batch run` writes to addresses"):
            results[0].save(f"{photos}/out")


def test_buckets_are_not_watched(photos: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="only folders of this machine can be watched"):
        look(RunOptions((photos,), str(tmp_path / "out")))


def test_an_upload_that_a_network_fails_is_tried_again(
    photos: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, tries = f"{remote.top(photos)}/masks", itertools.count()
    system = remote.connect(out)
    put = system.put

    def fail_now_and_then(*arguments: Any, **options: Any) -> None:
        if next(tries) % 3 == 0:
            raise ConnectionResetError
        put(*arguments, **options)

    monkeypatch.setattr(system, "put", fail_now_and_then)
    assert segment(photos, output=out).done == 7
    assert next(tries) > 7
    segment(str(tmp_path / "photos"), output=str(tmp_path / "plain"))
    assert pictures_of(stored(out)) == masks(tmp_path / "plain")


def test_failures_of_other_folders_stay_listed(photos: str) -> None:
    bucket = remote.top(photos)
    put(f"{bucket}/bad/bad.png", b"bad")
    segment(f"{bucket}/bad", output=f"{bucket}/out")
    report = segment(photos, output=f"{bucket}/out")
    assert (report.done, report.failed_before) == (7, 1)
    remote.connect(bucket).rm(f"{bucket}/bad/bad.png")
    remote._versions.clear()
    assert segment(photos, output=f"{bucket}/out").failed_before == 0


def test_a_copy_that_ends_early_is_no_picture_but_worth_another_try(
    photos: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = remote.connect(photos)
    whole, tries = system.get_file, itertools.count()

    def get_file(address: str, path: str) -> None:
        whole(address, path)
        if next(tries) < 3:
            os.truncate(path, os.path.getsize(path) - 9)

    monkeypatch.setattr(system, "get_file", get_file)
    report = segment(photos, output=str(tmp_path / "out"), retry_pauses=(0.0,))
    assert (report.done, report.retried) == (7, 3)


def test_the_table_of_a_run_is_made_of_what_is_in_the_bucket(photos: str, bucket: str) -> None:
    out = f"{bucket}/out"
    report = segment(photos, output=out, save=("stats",))
    table = stored(out)["stats.csv"]
    keys = [line.split(",")[1] for line in table.decode().splitlines()]
    assert keys == ["key", *(f"sub/{number}" for number in range(7))]
    assert report.tables["stats"]["rows"] == 7
    put(f"{out}/stats.csv", b"as it was")
    assert segment(photos, output=out, save=("stats",)).done == 0
    assert stored(out)["stats.csv"] == b"as it was", "nothing was new, nothing was written"
    put(f"{photos}/more.png", png(9))
    segment(photos, output=out, save=("stats",))
    assert stored(out)["stats.csv"].decode().splitlines()[1].split(",")[1] == "more"


def test_the_page_is_made_of_a_copy_of_the_bucket(photos: str, bucket: str, tmp_path: Path) -> None:
    """As the error of one who asks for it in the bucket says; the photos stay where they are."""
    out, copy = f"{bucket}/out", tmp_path / "copy"
    with Segmenter(FakeBackend(), model=fake_file(), workers=2) as segmenter:
        execute(prepare(RunOptions((photos,), out)), segmenter)
    with pytest.raises(UsageError, match="disk only") as caught:
        write_report(out)
    assert "copy the folder to this machine" in caught.value.hint
    for name, data in stored(out).items():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(data)
    made = write_report(str(copy))
    assert (made.items, made.made, made.gone) == (7, 7, 0)
    [pack] = (copy / "report/packs").glob("*.js")
    thumbnails = json.loads(pack.read_text().split(",", 1)[1].strip().removesuffix(")"))
    assert all(photo and mask for photo, mask in thumbnails)
    assert write_report(str(copy)).made == 0
