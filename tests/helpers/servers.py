"""Servers on this machine: S3 by moto, and one for HTTP that can be slow, busy or torn off."""

from __future__ import annotations

import http.client
import http.server
import itertools
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from tests.helpers.waiting import PATIENCE

PROXIES = [f"{name}_proxy" for name in ("http", "https", "all", "no")]


def keep_home(patch: pytest.MonkeyPatch, cache: Path) -> None:
    """No proxy, no credentials but made-up ones, and a cache folder of the test's own."""
    for name in PROXIES:
        patch.delenv(name, raising=False)
        patch.delenv(name.upper(), raising=False)
    for name in [name for name in os.environ if name.startswith(("AWS_", "FSSPEC_"))]:
        patch.delenv(name)
    patch.setenv("AWS_ACCESS_KEY_ID", "made-up")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "made-up")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    patch.setenv("AWS_CONFIG_FILE", os.devnull)
    patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    patch.setenv("XDG_CACHE_HOME", str(cache))
    patch.setenv("LOCALAPPDATA", str(cache))


class FolderServer(http.server.ThreadingHTTPServer):
    """Serves a folder, with listings.

    Attributes:
        url: of the folder, without a slash at its end.
        asked: how often which path was asked for, by method.
        delay: seconds before each answer.
        meeting: so many requests, if they are set, are answered once all of them have come.
        busy: answer every so many requests for a file with 503; 0 never.
        torn: paths of files whose body ends early, and how often it still does.
        logins: what requests brought as Authorization.
        at_once: the most requests for files that were being answered at once.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.url = folder, f"http://127.0.0.1:{self.server_address[1]}"
        self.asked: Counter[tuple[str, str]] = Counter()
        self.logins: set[str] = set()
        self.meeting: threading.Barrier | None = None
        self.delay, self.busy, self.torn = 0.0, 0, Counter[str]()
        self.at_once, self._now, self._count, self._lock = 0, 0, 0, threading.Lock()

    def begin(self) -> int:
        with self._lock:
            self._now += 1
            self._count += 1
            self.at_once = max(self.at_once, self._now)
            return self._count

    def end(self) -> None:
        with self._lock:
            self._now -= 1

    def handle_error(self, request: Any, address: Any) -> None:
        """Clients that hang up are no news."""


class _Handler(http.server.SimpleHTTPRequestHandler):
    server: FolderServer
    protocol_version = "HTTP/1.1"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments, directory=str(arguments[2].folder))

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked["GET", path] += 1
        self.server.logins.add(self.headers.get("Authorization", ""))
        number = self.server.begin()
        try:
            time.sleep(self.server.delay)
            if self.server.meeting is not None and number <= self.server.meeting.parties:
                self.server.meeting.wait(PATIENCE)
            if self.server.busy and number % self.server.busy == 0 and not path.endswith("/"):
                self.send_response(503)
                self.send_header("Content-Length", "0")
                self.end_headers()
            elif self.server.torn[path] > 0:
                self.server.torn[path] -= 1
                data = (self.server.folder / path.lstrip("/")).read_bytes()
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[: len(data) // 2])
                self.close_connection = True
            else:
                super().do_GET()
        finally:
            self.server.end()

    def do_HEAD(self) -> None:
        self.server.asked["HEAD", unquote(urlsplit(self.path).path)] += 1
        super().do_HEAD()

    def log_message(self, format: str, *arguments: Any) -> None:
        """Tests have no screen."""


class BusyGate(http.server.ThreadingHTTPServer):
    """Passes requests on to another server, but for every fifth, which it answers with 503 Slow Down.

    Attributes:
        refused: how many it did not pass on.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), _Gate)
        self.target, self.url = urlsplit(target).netloc, f"http://127.0.0.1:{self.server_address[1]}"
        self.refused, self.counter = 0, itertools.count()


class _Gate(http.server.BaseHTTPRequestHandler):
    server: BusyGate
    protocol_version = "HTTP/1.1"

    def pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if next(self.server.counter) % 5 == 0:
            self.server.refused += 1
            self.answer(503, {}, b"<Error><Code>SlowDown</Code><Message>Slow down</Message></Error>")
            return
        connection = http.client.HTTPConnection(self.server.target)
        connection.request(self.command, self.path, body, dict(self.headers))
        response = connection.getresponse()
        self.answer(response.status, dict(response.getheaders()), response.read())
        connection.close()

    def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                self.send_header(name, value)
        length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(body))
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = pass_on  # noqa: N815 - names of http.server

    def log_message(self, format: str, *arguments: Any) -> None:
        """Tests have no screen."""


@contextmanager
def serving(server: http.server.ThreadingHTTPServer) -> Iterator[None]:
    """A server answers as long as the context lasts."""
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def serve(folder: Path) -> Iterator[FolderServer]:
    """A server of a folder, as long as the context lasts."""
    server = FolderServer(folder)
    with serving(server):
        yield server
