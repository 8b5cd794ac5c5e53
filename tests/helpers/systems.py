"""What some tests need of the system they run on: marks that skip elsewhere, and say why."""

from __future__ import annotations

import os
import sys
import tempfile

import pytest


def _links() -> bool:
    """Try whether this user may make symbolic links, which on Windows is a right of its own."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            os.symlink("target", os.path.join(folder, "link"))
        except (OSError, NotImplementedError):
            return False
    return True


needs_posix = pytest.mark.skipif(
    os.name != "posix",
    reason="needs POSIX: its signals, terminals, permission bits or file names",
)
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: it looks into /proc")
needs_full_device = pytest.mark.skipif(
    not os.path.exists("/dev/full"), reason="needs /dev/full, as Linux has it"
)
needs_pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes, as POSIX has them")
needs_links = pytest.mark.skipif(not _links(), reason="needs the right to make symbolic links")
needs_permissions = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0,
    reason="needs a user whom permissions bind: this one is root, or the system is Windows",
)
needs_any_name = pytest.mark.skipif(
    sys.platform in ("win32", "darwin"),
    reason="needs a file system that takes any bytes for a name",
)
