"""An output folder behind an address: `-o s3://bucket/masks`.

Objects cannot be appended to, renamed or locked, so a folder on this machine, the same for the same address,
stands for it during a run: outputs are written and named there as in any output folder, uploaded, removed
here, and then recorded. The manifest grows there, line by line; its new lines are uploaded every SECONDS as
an object of their own in `manifest-parts`, and all of it as `manifest.jsonl` at the end. So after a kill this
machine knows all that was done, and another one all but the last seconds, whose items it does again, to the
same bytes.

A lock object keeps other machines away: made only if there is none (`If-None-Match`, where the store has it),
renewed while the run lives, and no longer respected EXPIRED seconds after it was last. Runs on this machine
are kept away by the lock of the folder here. What it cannot do is stop a run that was frozen for longer: that
one finds out when it next renews.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import secrets
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar, cast

from unet_batch.errors import FolderInUse, OutputError, UsageError
from unet_batch.files import listing, remote
from unet_batch.files.atomic import host_id, make_folder, remove, write_atomic
from unet_batch.files.branches import Branches

SECONDS = 15.0
"""Between two uploads of what the manifest has gained."""
EXPIRED = 300.0
"""Seconds after which a lock that nobody renews holds no longer."""
UPLOADS = 16
"""Files that are on their way to a server at once."""
_RENEW = 60.0
_LOOK = 2.0
_PAUSES = (1.0, 5.0, 30.0, 60.0)  # seconds, before an upload that a network fails ends the run
_STATE = re.compile(r"(manifest|run|errors)(-[0-9]+-of-[0-9]+)?\.jsonl?")
_PARTS = "manifest-parts"
_PART = re.compile(r"(manifest(?:-[0-9]+-of-[0-9]+)?)-[0-9]{13}-[0-9a-f]{4}\.jsonl")
_LOCK = re.compile(r"\.run(?:-[0-9]+-of-([0-9]+))?\.lock")
_ELSEWHERE = "choose another output folder with -o"

T = TypeVar("T")


class RemoteFolder:
    """An output folder behind an address, and the folder here that stands for it.

    Args:
        url: the address, as `remote.normalize` returns it.

    Attributes:
        folder: the one here; need not exist.

    Raises:
        UsageError: nothing can be written there.
        OutputError: here and everywhere: the store cannot be written or read; the message says why.
    """

    def __init__(self, url: str) -> None:
        if remote.is_http(url):
            raise UsageError(
                f"-o {url}: the web is read only", hint="name a bucket, s3://bucket/folder, or a folder"
            )
        remote.connect(url)
        self.url = url
        self.folder = remote.cache_folder("outputs", hashlib.sha256(url.encode()).hexdigest()[:16])
        self._stem = "manifest"  # of the file that this run adds to
        self._sent: int | None = None  # bytes of it that the store has; None before `fetch`
        self._states: dict[str, tuple[int, int]] = {}  # size and time here of the files that are the store's
        self._uploading = threading.Lock()
        self._in_session, self._lost = False, ""

    def sizes(self, folder: str, branches: Branches | None = None) -> dict[str, int]:
        """Bytes of the files below a folder of the outputs, by their `/`-separated path below the address.

        Args:
            folder: its name.
            branches: what is looked into below it; everything without it.
        """
        try:
            found = listing.find(f"{self.url}/{folder}", branches)
            return {f"{folder}/{name}": info["size"] for name, info in found}
        except OSError as error:
            raise self._error(error) from error

    def head(self, file: str, count: int) -> bytes:
        """The first bytes of a file."""
        data: bytes = self._ask(lambda system, url: system.cat_file(f"{url}/{file}", start=0, end=count))
        return data

    def tail(self, file: str, count: int) -> bytes:
        """The last bytes of an output."""
        data: bytes = self._ask(lambda system, url: system.cat_file(f"{url}/{file}", start=-count))
        return data

    def contents(self, files: Sequence[str]) -> list[bytes | None]:
        """Contents of outputs; None of one that is not there."""

        def read(file: str) -> bytes | None:
            with contextlib.suppress(OutputError):
                return self._ask(lambda system, url: cast("bytes", system.cat_file(f"{url}/{file}")))
            return None

        with ThreadPoolExecutor(UPLOADS) as pool:
            return list(pool.map(read, files))

    def names(self) -> set[str]:
        """Names of the files just below the address."""
        return set(self._names(""))

    def discard(self, files: Sequence[str]) -> None:
        """Remove outputs there, if they are."""
        for file in files:
            self._remove([file])

    def check(self) -> None:
        """See that no other run has taken over; raise FolderInUse if one has."""
        if self._lost:
            raise FolderInUse(self._lost, hint="run again: what is done stays done")

    def upload(self, files: Sequence[str]) -> None:
        """Upload outputs, their paths relative and `/`-separated, and remove them here."""
        self.check()
        if not files:
            return
        paths = [os.path.join(self.folder, *file.split("/")) for file in files]
        urls = [f"{self.url}/{file}" for file in files]
        for pause in (*_PAUSES, None):
            try:
                # Without a file system's own listing of what to put where: both are lists.
                self._ask(lambda system, url: system.put(paths, urls, batch_size=UPLOADS))
                break
            except OutputError as error:
                if pause is None or not remote.is_passing(error.__cause__):
                    raise
            time.sleep(pause)
        remove(paths)

    # The state of runs: manifests, reports, lists of failures.

    def manifests(self) -> dict[str, list[str]]:
        """The files that each manifest consists of there, oldest lines first, by its name without ending."""
        names = [name for name in self._names("") if _STATE.fullmatch(name) and name.startswith("manifest")]
        files = {name.removesuffix(".jsonl"): [name] for name in names}
        for name in sorted(filter(_PART.fullmatch, self._names(_PARTS))):
            files.setdefault(_stem(name), []).append(f"{_PARTS}/{name}")
        return files

    def fetch(self, others: Collection[str] = ()) -> None:
        """Bring here what earlier runs, on any machine, recorded; outside a session only the manifests.

        Args:
            others: parts of shards whose files need not be here.
        """
        make_folder(self.folder)
        left = {f"{name}-{part}" for part in others for name in ("manifest", "run", "errors")}
        manifests = {stem: files for stem, files in self.manifests().items() if stem not in left}
        names = []
        if self._in_session:
            found = filter(_STATE.fullmatch, self._names(""))
            names = [name for name in found if _bare(name) not in left and not name.startswith("manifest")]
        contents = self._read([*names, *(file for files in manifests.values() for file in files)])
        for name in names:
            write_atomic(os.path.join(self.folder, name), contents[name])
        own, has_all = f"{self._stem}.jsonl", True
        for stem, files in manifests.items():
            complete = self._join(f"{stem}.jsonl", b"".join(contents[file] for file in files))
            has_all = has_all and (complete or stem != self._stem)
        if not self._in_session:
            return
        local = self._local()
        remove(
            os.path.join(self.folder, name)
            for name in local
            if name not in names and not name.startswith("manifest") and _bare(name) not in left
        )
        self._states = {name: state for name in local if (state := self._state(name)) is not None}
        there = manifests.get(self._stem, [])
        if there != [own] or not has_all:
            self._states.pop(own, None)  # it is not there as it is here
        size = self._state(own)
        self._sent = size[0] if size is not None and has_all and there else 0

    def _join(self, name: str, data: bytes) -> bool:
        """Add the lines that the store has to those that are here; return whether it has all of these.

        A run that writes to the file here must not notice: nothing changes where the store knows no more.
        """
        path = os.path.join(self.folder, name)
        try:
            with open(path, "rb") as file:
                here = file.read()
        except FileNotFoundError:
            here = b""
        ours, theirs = here.splitlines(), data.splitlines()
        missing = set(theirs).difference(ours)
        if missing:
            lines = sorted((*ours, *(line for line in theirs if line in missing)), key=_time_of)
            write_atomic(path, b"".join(line + b"\n" for line in lines))
        return set(theirs).issuperset(ours)

    def publish(self, *, all: bool = False) -> None:
        """Upload what the state has gained since the last time.

        Args:
            all: the run ends: upload whole files in place of parts.
        """
        with self._uploading:
            if self._sent is None:
                return
            own = f"{self._stem}.jsonl"
            for name in self._local():
                state = self._state(name)
                if state is None or state == self._states.get(name) or (name == own and not all):
                    continue
                self._put(name, os.path.join(self.folder, name))
                self._states[name] = state
            for name in [name for name in self._states if self._state(name) is None]:
                self._remove([name])
                del self._states[name]
            if all:
                self._remove([f"{_PARTS}/{name}" for name in self._names(_PARTS) if self._is_settled(name)])
            else:
                self._publish_part(os.path.join(self.folder, own))

    def _publish_part(self, path: str) -> None:
        assert self._sent is not None
        try:
            with open(path, "rb") as file:
                file.seek(self._sent)
                lines = file.read()
        except FileNotFoundError:
            return
        lines = lines[: lines.rfind(b"\n") + 1]
        if lines:
            name = f"{_PARTS}/{self._stem}-{time.time_ns() // 10**6:013d}-{secrets.token_hex(2)}.jsonl"
            self._ask(lambda system, url: system.pipe_file(f"{url}/{name}", lines))
            self._sent += len(lines)

    def _is_settled(self, part: str) -> bool:
        """Whether a part is of a manifest that is there as a whole, or was merged into another one.

        Other shards may be at work: their parts are theirs.
        """
        match = _PART.fullmatch(part)
        if match is None or match[1] == self._stem:
            return match is not None
        return self._stem == "manifest" and f"{match[1]}.jsonl" not in self._states

    # The lock, and what goes on beside a run.

    @contextmanager
    def session(
        self, part: str = "", *, wait: bool = False, on_wait: Callable[[str], None] = lambda owner: None
    ) -> Iterator[None]:
        """Hold the lock, and publish the state now and then and at the end.

        The lock of the folder here is held already, so whatever holds the object from here is dead.

        Args:
            part: of a shard, such as `2-of-8`; "" for everything.
            wait: wait for others instead of raising.
            on_wait: called with the owner, in words, before waiting.

        Raises:
            FolderInUse: another machine holds it.
        """
        self._stem, self._lost, self._sent = (f"manifest-{part}" if part else "manifest"), "", None
        lock = _Lock(self, part)
        lock.acquire(wait=wait, on_wait=on_wait)
        self._in_session = True
        ended = threading.Event()
        worker = threading.Thread(target=self._keep_up, args=(lock, ended), name="publish", daemon=True)
        worker.start()
        aborted = True
        try:
            yield
            aborted = False
        finally:
            ended.set()
            worker.join()
            # What aborted the run is what the caller must hear of, not that the store refused this, too.
            with contextlib.suppress(OutputError) if aborted else contextlib.nullcontext():
                self.check()
                self.publish(all=True)
            self._in_session = False
            lock.release()

    def _keep_up(self, lock: _Lock, ended: threading.Event) -> None:
        renewed, pause = time.monotonic(), min(1.0, SECONDS)  # run.json soon: it tells outputs from pictures
        while not ended.wait(pause):
            pause = SECONDS
            # What fails now is tried again the next time, and at the end it ends the run.
            with contextlib.suppress(OutputError, OSError):
                self.publish()
            if time.monotonic() - renewed >= _RENEW:
                with contextlib.suppress(OutputError):
                    if not lock.renew():
                        self._lost = f"{self.url}: another run has taken over, as this one was not heard of"
                        return
                    renewed = time.monotonic()

    # Requests.

    def _ask(self, request: Callable[[Any, str], T]) -> T:
        try:
            return remote.attempt(self.url, request)
        except OSError as error:
            raise self._error(error) from error

    def _error(self, error: OSError) -> OutputError:
        reason = error.strerror or error
        return OutputError(f"{self.url} cannot be used for outputs: {reason}", hint=_ELSEWHERE)

    def _names(self, folder: str) -> list[str]:
        """Names of the files in a folder there."""

        def list_names(system: Any, url: str) -> list[str]:
            try:
                found = system.ls(f"{url}/{folder}".rstrip("/"), detail=True)
            except FileNotFoundError as error:
                if remote.is_of_bucket(error):
                    raise
                return []
            return [info["name"].rpartition("/")[2] for info in found if info["type"] == "file"]

        return self._ask(list_names)

    def _read(self, files: Sequence[str]) -> dict[str, bytes]:
        def read(system: Any, url: str) -> dict[str, bytes]:
            with ThreadPoolExecutor(UPLOADS) as pool:
                return dict(
                    zip(files, pool.map(lambda file: system.cat_file(f"{url}/{file}"), files), strict=True)
                )

        return self._ask(read)

    def _put(self, file: str, path: str) -> None:
        with contextlib.suppress(FileNotFoundError), open(path, "rb") as opened:
            data = opened.read()
            self._ask(lambda system, url: system.pipe_file(f"{url}/{file}", data))

    def _remove(self, files: Sequence[str]) -> None:
        def rm(system: Any, url: str) -> None:
            with contextlib.suppress(FileNotFoundError):
                system.rm([f"{url}/{file}" for file in files])

        if files:
            self._ask(rm)

    def _local(self) -> list[str]:
        return sorted(name for name in os.listdir(self.folder) if _STATE.fullmatch(name))

    def _state(self, name: str) -> tuple[int, int] | None:
        try:
            found = os.stat(os.path.join(self.folder, name))
        except FileNotFoundError:
            return None
        return found.st_size, found.st_mtime_ns


class _Lock:
    """The lock object of a run, or of one of its shards."""

    def __init__(self, folder: RemoteFolder, part: str) -> None:
        self.folder, self.part = folder, part
        self.name = f".run-{part}.lock" if part else ".run.lock"
        self.machine = hashlib.sha256(f"{host_id()} {folder.folder}".encode()).hexdigest()[:16]
        self.token = secrets.token_hex(8)

    def acquire(self, *, wait: bool, on_wait: Callable[[str], None]) -> None:
        """Take it; raise FolderInUse, or wait, where another machine has it."""
        told = False
        while (holder := self._take()) is not None:
            if not wait:
                raise FolderInUse(
                    f"{self.folder.url}: {holder} is writing here",
                    hint=f"wait for it with --wait; a run that has died is forgotten after {EXPIRED:.0f} s",
                )
            if not told:
                on_wait(holder)
                told = True
            time.sleep(_LOOK)

    def _take(self) -> str | None:
        """Take it and return None, or name who has it. Of two at once never both get it, perhaps none."""
        if (holder := self._holder(self.name)) is not None:
            return holder
        if not self._create():
            return self._holder(self.name) or "another run"
        count = self.part.rpartition("-")[2]
        for name in self.folder._names(""):
            match = _LOCK.fullmatch(name)
            if match is None or name == self.name or (self.part and match[1] == count):
                continue
            if (holder := self._holder(name)) is not None:
                self.release()
                return holder
        return None

    def _create(self) -> bool:
        """Make the object, unless somebody else has."""

        def create(system: Any, url: str) -> bool:
            address = f"{url}/{self.name}"
            try:
                system.pipe_file(address, self._words(), mode="create")
            except FileExistsError:
                return False
            except (
                TypeError,
                NotImplementedError,
                ValueError,
            ):  # a store without conditions: the last one wins
                system.pipe_file(address, self._words())
                time.sleep(_LOOK)
            return True

        return self.folder._ask(create) and self._is_ours()

    def _holder(self, name: str) -> str | None:
        """Who holds a lock, in words; None where nobody does, and what is left of one is removed."""
        owner = self._read(name)
        if owner is None:
            return None
        age = time.time() - owner.get("renewed", 0.0)
        if owner.get("machine") == self.machine or age > EXPIRED:
            self.folder._remove([name])
            return None
        who = f"process {owner.get('pid')} on {owner.get('host')}"
        return f"another run ({who}, last heard of {max(0.0, age):.0f} s ago)"

    def _read(self, name: str) -> dict[str, Any] | None:
        def read(system: Any, url: str) -> bytes:
            try:
                data: bytes = system.cat_file(f"{url}/{name}")
            except FileNotFoundError:
                return b""
            return data

        try:
            owner = json.loads(self.folder._ask(read) or b"null")
        except ValueError:
            owner = {}
        return owner if isinstance(owner, dict) else None

    def _words(self) -> bytes:
        owner = {"token": self.token, "machine": self.machine, "host": platform.node(), "pid": os.getpid()}
        return json.dumps({**owner, "renewed": round(time.time(), 3)}).encode()

    def _is_ours(self) -> bool:
        return (self._read(self.name) or {}).get("token") == self.token

    def renew(self) -> bool:
        """Say that the run lives; False if somebody else holds the lock by now."""
        if not self._is_ours():
            return False
        self.folder._ask(lambda system, url: system.pipe_file(f"{url}/{self.name}", self._words()))
        return True

    def release(self) -> None:
        """Give it back, if it is still ours."""
        with contextlib.suppress(OutputError):
            if self._is_ours():
                self.folder._remove([self.name])


def _stem(part: str) -> str:
    """The name of the manifest that a part is of, without its ending."""
    match = _PART.fullmatch(part)
    assert match is not None
    return match[1]


def _bare(name: str) -> str:
    return name.partition(".")[0]


def _time_of(line: bytes) -> float:
    try:
        return float(json.loads(line)["at"])
    except (ValueError, KeyError, TypeError):
        return 0.0
