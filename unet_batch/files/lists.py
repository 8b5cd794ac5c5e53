"""`@lists` of paths, and names made absolute as sources are."""

from __future__ import annotations

import os

from unet_batch.errors import SourceError
from unet_batch.files import archives, remote


def read_list(name: str, cwd: str = "") -> list[str]:
    """The paths in a list, absolute; relative ones start at the list's folder.

    Raises:
        SourceError: it cannot be read, or names nothing.
    """
    cwd = cwd or os.getcwd()
    path = absolute(name, cwd)
    hint = "a file whose name begins with @ is written ./@name"
    # A pipe, as of a shell's @<(find ...), has no folder that its lines could be relative to.
    folder = os.path.dirname(path) if os.path.isfile(path) or remote.is_remote(path) else cwd
    try:
        with archives.open_file(path) as file:
            raw = file.read()
    except (OSError, ValueError) as error:
        raise SourceError(f"the list {name} cannot be read: {reason(error)}", hint=hint) from error
    if b"\0" in raw:
        raise SourceError(
            f"the list {name} is not UTF-8 text", hint="save it as UTF-8, one file name per line"
        )
    lines = [line.removesuffix("\r") for line in raw.decode("utf-8-sig", "surrogateescape").split("\n")]
    entries = [absolute(line, folder) for line in lines if line.strip() and not line.startswith("#")]
    if not entries:
        raise SourceError(f"the list {name} names no files", hint=hint)
    return entries


def absolute(path: str, cwd: str) -> str:
    """A name that starts at `cwd` as an absolute path, or as the address by which a file is known."""
    if remote.is_remote(cwd) and not remote.is_remote(path) and not os.path.isabs(path):
        path = f"{cwd}/{path}"
    if remote.is_remote(path):
        return remote.normalize(path)
    path = os.path.join(cwd, path)
    if os.pardir in path.replace(os.altsep or os.sep, os.sep).split(os.sep):
        # The parent of a link is not what its name suggests, so `..` needs the file system; the last name
        # stays as given.
        head, last = os.path.split(path)
        path = (
            os.path.realpath(path)
            if last in ("", os.curdir, os.pardir)
            else os.path.join(os.path.realpath(head), last)
        )
    path = os.path.abspath(path)
    # POSIX lets two slashes be, and keys are cut by length
    return path if os.name == "nt" else "/" + path.lstrip("/")


def reason(error: OSError | ValueError) -> str:
    """What went wrong, in the system's words."""
    return getattr(error, "strerror", None) or str(error)
