"""Files behind addresses, `s3://bucket/a.jpg` or `https://host/a.jpg`, through fsspec.

`archives` takes such paths and all others; nothing but this module and `staging` knows of fsspec, which is
imported with the first address. A listing tells sizes and versions, so that no file of it costs a request
before it is read. Before a run reads a file, the whole of it is copied to a temporary file on this machine
(`read_ahead`), which decoders, their processes and FFmpeg open as any other; whoever opens a file that was
not copied gets it in memory.

Retries: s3fs, gcsfs and adlfs try again themselves, with growing pauses, what a network or a busy server
refuses; for HTTP, where fsspec does not, it is done here. What fails even so has the number of an error that
passes (EIO), so that a run tries it once more at its end.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import importlib.util
import os
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime
from io import BytesIO
from typing import Any, BinaryIO, TypeVar
from urllib.parse import quote, unquote

from unet_batch.errors import UsageError
from unet_batch.files.atomic import clean_leftovers, open_temporary, translate
from unet_batch.files.naming import shown, without_signature

LARGEST = 2 * 2**30
"""Bytes of the largest file that is read into memory."""
AHEAD = 32
"""Files that are on their way from a server at once; also requests for sizes."""
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")  # one letter is a drive of Windows
_PAUSES = (0.25, 1.0, 4.0)  # seconds, between tries over HTTP
_NEEDS = {"s3": "s3fs", "s3a": "s3fs", "http": "aiohttp", "https": "aiohttp"} | {
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("az", "abfs", "abfss", "adl"), "adlfs"),
}
_VERSIONS = ("ETag", "etag", "md5Hash", "Content-MD5", "Last-Modified", "LastModified", "last_modified")
_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError")
_MISCONFIGURED = ("ProfileNotFound", "ConfigParseError", "NoRegionError", "InvalidURL")

T = TypeVar("T")
Known = tuple[dict[str, int], dict[str, str], dict[str, str], set[str]]
"""What a process knows of addresses: versions, signatures, logins by host, which are folders."""

_folders: set[str] = set()  # what was named with a slash behind it
_signatures: dict[str, str] = {}  # the query behind an address
_logins: dict[str, str] = {}  # `name:password@`, by host with scheme
_versions: dict[str, int] = {}  # size in the lower 64 bits: pairs would take twice the memory
_copies: dict[str, str | OSError] = {}


# Addresses --------------------------------------------------------------------------------------------------


def is_remote(path: str) -> bool:
    """Whether a path is an address."""
    return "://" in path and _ADDRESS.match(path) is not None


def is_http(url: str) -> bool:
    """Whether an address is one of the web, which cannot tell folders from files, nor be written to."""
    return url.startswith(("http://", "https://"))


def normalize(url: str) -> str:
    """An address by which a file is known: without a slash at its end, and without secrets.

    Of the web, a signature and a password are remembered, for requests only: neither is written anywhere.
    """
    scheme, _, rest = url.partition("://")
    url = f"{scheme.lower()}://{rest}"
    if is_http(url):
        full, url = url, quoted(shown(url))
        if login := re.match(r"https?://([^/@]*@)", full):
            _logins[top(url)] = login[1]
        if (query := full[len(without_signature(full)) :]) != "":
            _signatures[url] = query
    if url.endswith("/"):
        url = url.rstrip("/")
        _folders.add(url)
    return url


def quoted(url: str) -> str:
    """An address of the web spelled in one way: `b c.jpg` and `b%20c.jpg` are one file."""
    scheme, _, rest = url.partition("://")
    host, slash, rest = rest.partition("/")
    path, mark, query = rest.partition("?")
    if "%2f" not in path.lower():
        path = quote(unquote(path), safe="/:@!$&'()*+,;=~")
    return f"{scheme}://{host}{slash}{path}{mark}{query}"


def file_name(name: str) -> str:
    """How a file is called whose address ends so: `b%20c.jpg` is of `b c.jpg`."""
    decoded = unquote(name)
    same = decoded.count("/") == name.count("/") and {"", ".", ".."}.isdisjoint(decoded.split("/"))
    return decoded if same else name


def top(url: str) -> str:
    """The bucket or host of an address, with its scheme."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}"


# Requests ---------------------------------------------------------------------------------------------------


def connect(url: str) -> Any:
    """The file system of fsspec that an address is of.

    Raises:
        UsageError: there is none, or its package is not installed.
    """
    return _connect(top(url))


@functools.lru_cache(64)
def _connect(url: str) -> Any:
    scheme = url.partition("://")[0]
    package = _NEEDS.get(scheme, "")
    for name in ("fsspec", package):
        if name and importlib.util.find_spec(name) is None:
            extra = (
                "unet-batch[cloud]" if package in ("", "s3fs", "aiohttp") else f"unet-batch[cloud] {package}"
            )
            hint = "pip install " + " ".join(f'"{word}"' if "[" in word else word for word in extra.split())
            raise UsageError(f"{scheme}:// needs {name}, which is not installed", hint=hint)
    from fsspec.core import url_to_fs

    # What was listed is remembered here, in a tenth of the memory.
    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    if package == "s3fs":
        options["config_kwargs"] = {"max_pool_connections": 2 * AHEAD}  # botocore's own is 10
    elif package == "aiohttp":
        from aiohttp import ClientTimeout

        # aiohttp ignores the proxies of the environment unless told, and ends any transfer after 5 minutes.
        timeout = ClientTimeout(total=None, sock_connect=20, sock_read=60)
        options["client_kwargs"] = {"trust_env": True, "timeout": timeout}
        options["headers"] = {"Accept-Encoding": "identity"}
    try:
        system = url_to_fs(url, **options)[0]
        if package == "s3fs":
            _read_times_quickly(system)
        return system
    except (ValueError, ImportError) as error:
        raise UsageError(f"{scheme}:// is not known: {error}", hint="docs/remote.md lists what is") from error


def _read_times_quickly(system: Any) -> None:
    """Let a file system of S3 read the times in listings without dateutil, which takes longer than all else.

    A page of a thousand names took 142 ms of processor time, and takes 52.
    """
    from aiobotocore.session import AioSession

    if system.session is None:
        system.session = AioSession(**system.kwargs)  # as s3fs itself does when it connects
    system.session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=parse_time)


def parse_time(value: Any) -> Any:
    """A time in an answer of AWS: as botocore reads it, but quickly where it is written as S3 writes it."""
    try:
        return datetime.fromisoformat(value.replace("Z", "+00:00"))
    except (AttributeError, TypeError, ValueError):  # a number, or as HTTP writes it
        from botocore.utils import parse_timestamp

        return parse_timestamp(value)


def attempt(url: str, request: Callable[[Any, str], T]) -> T:
    """Make a request, over HTTP a few times where that may help.

    Args:
        url: what it concerns.
        request: given the file system and the address as it must be asked for.

    Raises:
        OSError: why it failed, in words for people; EIO where another try may help.
        UsageError: as from `connect`.
    """
    system = connect(url)
    for pause in (*(_PAUSES if is_http(url) else ()), None):
        try:
            return request(system, _with_secrets(url))
        except UsageError:
            raise
        except Exception as error:  # each library has errors of its own
            explained = _explain(error, url)
            if pause is None or not is_passing(explained):
                raise explained from error
        time.sleep(pause)
    raise AssertionError("the last try has no pause behind it")


def _with_secrets(url: str) -> str:
    if not is_http(url):
        return url
    host = top(url)
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{_logins.get(host, '')}{rest}{_signatures.get(url, '')}"


def is_passing(error: BaseException | None) -> bool:
    """Whether another try at what failed so may help."""
    return isinstance(error, OSError) and error.errno == errno.EIO


def is_of_bucket(error: FileNotFoundError) -> bool:
    """Whether it is the bucket that is missing, and not an object in it."""
    return re.search(r"bucket does not exist|NoSuchBucket", str(error)) is not None


def _explain(error: BaseException, url: str) -> OSError:
    """The failure of a request as an OSError whose number says whether another try may help."""
    kind, status = type(error), getattr(error, "status", None)
    if isinstance(error, FileNotFoundError):
        inner = error.__cause__
        if inner is not None and type(inner).__module__.startswith("aiohttp"):  # fsspec says so of all errors
            return _explain(inner, url)
        missing = "there is no such bucket" if is_of_bucket(error) else "no such object"
        return FileNotFoundError(errno.ENOENT, missing, url)
    if status in (404, 410):
        return FileNotFoundError(errno.ENOENT, "no such object", url)
    if kind.__name__ in _NO_CREDENTIALS:
        words = "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        return PermissionError(errno.EACCES, words, url)
    if isinstance(error, PermissionError) or status in (401, 403):
        said = "" if status else f": {error}"
        return PermissionError(errno.EACCES, f"access denied{said}", url)
    if isinstance(error, FileExistsError):
        return FileExistsError(errno.EEXIST, "it is there already", url)
    if status is not None:
        code = errno.EIO if status >= 500 or status in (408, 429) else errno.EINVAL
        return OSError(code, f"the server answered {status} {getattr(error, 'message', '')}".rstrip(), url)
    is_ours = kind.__module__.partition(".")[0] in ("aiohttp", "botocore", "aiobotocore")
    if kind.__name__ in _MISCONFIGURED:
        return OSError(errno.EINVAL, str(error), url)
    if is_ours or isinstance(error, (TimeoutError, ConnectionError)) or "Timeout" in kind.__name__:
        return OSError(errno.EIO, f"the connection failed: {error or kind.__name__}", url)
    if isinstance(error, OSError) and error.errno:
        lasting = (errno.EINVAL, errno.ENOSPC, errno.EDQUOT, errno.EPERM, errno.ENAMETOOLONG)
        code = error.errno if error.errno in lasting else errno.EIO
        return OSError(code, error.strerror or str(error), url)
    return OSError(errno.EINVAL, f"{kind.__name__}: {error}", url)


def known_of(paths: Iterable[str]) -> Known | None:
    """What another process needs to know to read what lies at these paths; None if none is an address."""
    if not (urls := list(filter(is_remote, paths))):
        return None
    versions = {url: _versions[url] for url in urls if url in _versions}
    signatures = {url: _signatures[url] for url in urls if url in _signatures}
    above = {url[:end] for url in urls for end, character in enumerate(url) if character == "/"}
    return versions, signatures, _logins, above & _folders


def take_over(known: Known) -> None:
    """Know what another process knows."""
    _versions.update(known[0])
    _signatures.update(known[1])
    _logins.update(known[2])
    _folders.update(known[3])


# What there is ----------------------------------------------------------------------------------------------


def stat(url: str) -> tuple[int, int]:
    """Size in bytes, and a number that is another one for another version; listed files cost no request.

    The number is of the checksum or version that the store has (ETag); of its time where there is none.

    Raises:
        OSError: it cannot be looked at.
    """
    if url not in _versions:
        info = attempt(url, lambda system, address: system.info(address))
        if info["type"] == "directory":
            raise IsADirectoryError(errno.EISDIR, "a folder", url)
        remember(url, info)
    return _size_of(url), _versions[url] >> 64


def remember(url: str, info: dict[str, Any]) -> None:
    """Take note of what a listing tells of a file."""
    number = 0
    for name in _VERSIONS:
        if version := info.get(name):
            number = int.from_bytes(hashlib.sha256(str(version).encode()).digest()[:8], "big") >> 4
            break
    _versions[url] = number << 64 | (info.get("size") or 0)


def _size_of(url: str) -> int:
    """Size in bytes of a file that was listed; 0 where it is not known."""
    return _versions.get(url, 0) & 0xFFFFFFFFFFFFFFFF


def look_up(urls: Iterable[str]) -> None:
    """Ask for the sizes of files that no listing has told; what fails is told when it is read."""

    def ask(url: str) -> None:
        with contextlib.suppress(OSError):
            stat(url)

    if unknown := [url for url in urls if url not in _versions]:
        connect(unknown[0])
        with ThreadPoolExecutor(AHEAD) as pool:
            list(pool.map(ask, unknown))


def is_folder(url: str) -> bool:
    """Whether there are files below an address; of the web, whether it was named with a slash at its end.

    Raises:
        OSError: it cannot be asked.
    """
    if url in _folders or is_http(url):
        return url in _folders
    _versions.pop(url, None)
    try:
        stat(url)
    except IsADirectoryError:
        return True
    except FileNotFoundError:
        return False
    return False


def is_named_folder(url: str) -> bool:
    """Whether an address was named with a slash at its end."""
    return url in _folders


def exists(url: str) -> bool:
    """Whether there is such a file or folder."""
    try:
        stat(url)
    except IsADirectoryError:
        return True
    except OSError:
        return False
    return True


# Contents ---------------------------------------------------------------------------------------------------


def open_file(url: str) -> BinaryIO:
    """Open the copy of a file, or, without one, all of it in memory.

    Raises:
        OSError: it cannot be read, or is too large to be held.
    """
    copy = _copies.get(url)
    if isinstance(copy, str):
        return open(copy, "rb")
    if copy is not None:
        raise copy
    if (size := stat(url)[0]) > LARGEST:
        raise OSError(errno.EFBIG, f"{size:,} bytes, which would be held in memory: copy it here first", url)
    return BytesIO(attempt(url, lambda system, address: system.cat_file(address)))


def head(url: str, count: int) -> bytes:
    """The first bytes of a file.

    Raises:
        OSError: it cannot be read.
    """
    data: bytes = attempt(url, lambda system, address: system.cat_file(address, start=0, end=count))
    return data


def local_path(path: str) -> str:
    """The copy of a file where there is one, else the path itself.

    Raises:
        OSError: it was to be copied, and cannot be read.
    """
    copy = _copies.get(path, path)
    if isinstance(copy, OSError):
        raise copy
    return copy


def adopt(url: str, copy: str) -> None:
    """Read a file from a copy that another process has made; `local_path` gave its name there."""
    _copies.clear()  # a worker answers one request at a time
    if copy != url:
        _copies[url] = copy


def fetch(url: str) -> None:
    """Copy a file to this machine, until `release`; why that failed is told by `open_file`.

    Raises:
        OutputError: the disk is full, or the cache folder cannot be written.
    """
    if isinstance(_copies.get(url), str):
        return
    folder = cache_folder("sources")
    try:
        copy, descriptor = open_temporary(folder)
        os.close(descriptor)
    except OSError as error:
        raise translate(error, folder, 0) from error
    try:
        attempt(url, functools.partial(_download, url, copy))
        _copies[url] = copy
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(copy)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise translate(error, folder, _size_of(url)) from error
        if isinstance(error, FileNotFoundError):
            _versions.pop(url, None)
        _copies[url] = error


def _download(url: str, copy: str, system: Any, address: str) -> None:
    system.get_file(address, copy)
    expected = _size_of(url)
    if expected and not is_http(url) and (size := os.path.getsize(copy)) < expected:
        raise ConnectionError(f"the file ends after {size:,} of {expected:,} bytes")


def release(path: str) -> None:
    """Remove the copy of a file, if there is one."""
    copy = _copies.pop(path, None)
    if isinstance(copy, str):
        with contextlib.suppress(OSError):
            os.unlink(copy)


def release_all() -> None:
    """Remove the copies of all files."""
    for url in list(_copies):
        release(url)


def read_ahead(
    items: Iterable[T], path_of: Callable[[T], str], is_idle: Callable[[], bool] = lambda: False
) -> Iterator[T]:
    """Give items in their order, each once its file is copied; AHEAD more are on their way meanwhile.

    A decoder has nothing to compute while it waits for a server, so threads for that are not decoders.

    Args:
        items: any; those whose path is no address pass as they are.
        path_of: gives the path of an item.
        is_idle: whether the next one would have to be waited for: then those that are here come first.

    Raises:
        OutputError: as from `fetch`.
    """
    waiting: deque[tuple[T, Future[None] | None]] = deque()

    def take() -> T:
        item, copied = waiting.popleft()
        if copied is not None:
            copied.result()
        return item

    clean_leftovers(cache_folder("sources"))
    pool = ThreadPoolExecutor(AHEAD, "fetch")
    try:
        for item in items:
            path = path_of(item)
            waiting.append((item, pool.submit(fetch, path) if is_remote(path) else None))
            while len(waiting) > AHEAD or (waiting and is_idle()):
                yield take()
        while waiting:
            yield take()
    finally:
        pool.shutdown(cancel_futures=True)


def cache_folder(*names: str) -> str:
    """A folder below the one where this program may keep what it can make again; need not exist."""
    if (base := os.environ.get("XDG_CACHE_HOME", "")) == "":
        base = os.path.expanduser("~/Library/Caches" if sys.platform == "darwin" else "~/.cache")
        if os.name == "nt":
            base = os.environ.get("LOCALAPPDATA") or os.path.expanduser(r"~\AppData\Local")
    return os.path.join(base, "unet-batch", *names)
