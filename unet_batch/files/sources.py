"""Which pictures and clips to segment, and what their outputs will be called.

Only names are looked at here, never pixels. What a person named is taken as it is; what a folder holds is
taken if the caller says that it is a picture or clip. Whatever cannot be taken is counted or listed in the
result: nothing is lost without a word.
"""

from __future__ import annotations

import difflib
import itertools
import os
import re
import stat
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from unet_batch.errors import SourceError
from unet_batch.files import archives, remote, stores
from unet_batch.files.branches import Branches
from unet_batch.files.lists import absolute, read_list, reason
from unet_batch.files.patterns import MAGIC, Pattern
from unet_batch.files.roots import common_folder, default_output, is_below, name_below, name_items, outermost
from unet_batch.types import Item

MARKER = b'{"unet_batch":'  # how the run.json of an output folder begins, white space aside
_NO_NAMES = frozenset({"", os.curdir, os.pardir})
_JUNK = frozenset({"thumbs.db", "desktop.ini", "__macosx"})


@dataclass(frozen=True)
class Sources:
    """What a request names.

    Attributes:
        items: the pictures and clips, in the order of their keys' components.
        root: absolute common folder of the sources, which keys are relative to; "" where they have nothing in
            common but the top of a file system, or not even that: then each of `folders` gives its last name
            to the keys of what it holds.
        folders: the outermost folders that were named or hold what was named.
        default_output: where results go unless the user says otherwise; see `roots.default_output`.
        ignored: how many other files the folders hold, by lower-case extension ("" for none).
        skipped_folders: folders left out because they hold outputs.
        unreadable: (path, reason) of folders and links below the sources that could not be listed.
        duplicates: how often a picture was named that had been named before.
        depth: of `Branches`: so many components of a key are the folder that is dealt; 0 where none are.
    """

    items: tuple[Item, ...]
    root: str
    folders: tuple[str, ...]
    default_output: str
    ignored: Mapping[str, int]
    skipped_folders: tuple[str, ...]
    unreadable: tuple[tuple[str, str], ...]
    duplicates: int
    depth: int = 0

    def root_of(self, path: str) -> str:
        """The folder that a source is named relative to: `root`, or the top of its own file system."""
        if self.root:
            return self.root
        if remote.is_remote(path):
            return remote.top(path)
        return os.path.join(os.path.splitdrive(path)[0], os.sep)

    def relative(self, path: str) -> str:
        """The name of a source below `root_of`, `/`-separated."""
        root = self.root or self.root_of(path)
        name = path[len(root) + (not root.endswith(os.sep)) :]
        return name if os.sep == "/" else name.replace(os.sep, "/")


def check_names(
    sources: Sequence[str],
    *,
    live: Callable[[str], str | None] = lambda source: None,
    cwd: str | None = None,
) -> None:
    """See that whatever is named by its own name is there; looks into no folder, so that it takes no time.

    Raises:
        SourceError: as from `collect`.
    """
    search = _Search(lambda name: False, live, (), cwd)
    for source in sources:
        if not source.startswith("@") and not live(source):
            search.locate(source)


def collect(
    sources: Sequence[str],
    *,
    is_picture: Callable[[str], bool],
    live: Callable[[str], str | None] = lambda source: None,
    exclude: Sequence[str] = (),
    may_be_empty: bool = False,
    cwd: str | None = None,
    branches: Branches | None = None,
) -> Sources:
    """Find what `sources` name: files, folders with all below, glob patterns, and `@lists` of paths.

    Args:
        sources: what the user named; relative names start at `cwd`.
        is_picture: says whether a file found in a folder is to be segmented; given its path.
        live: gives a name to a source that is no file but a camera or an address; None to all others.
        exclude: folders to leave out wherever they appear, the output folder above all.
        may_be_empty: folders need not hold anything yet.
        cwd: where relative names start; the current folder if None.
        branches: of a single folder or pattern, which folders below it are looked into; all without it, and
            all of several sources, of lists and of archives. Keys are those that they would have anyway.

    Raises:
        SourceError: a source does not exist, cannot be read, or holds no pictures.
    """
    if len(sources) != 1 or sources[0].startswith("@"):
        branches = None
    search = _Search(is_picture, live, exclude, cwd, may_be_empty=may_be_empty, branches=branches)
    for source in sources:
        search.add(source)
    if not search.found and not search.addresses and not (search.may_be_empty and search.bases):
        why = (
            f": {len(search.skipped)} folder(s) hold outputs, such as {min(search.skipped)}"
            if search.skipped
            else ""
        )
        why += "".join(
            f"; {path} {reason}" for path, reason in itertools.islice(search.unreadable.items(), 1)
        )
        raise SourceError(
            f"no pictures to segment{why}", hint="name a file or folder with pictures that are not outputs"
        )
    remote.look_up(path for path in search.found if remote.is_remote(path))
    bases = search.bases or {os.path.join(search.cwd, "live")}
    root, folders = common_folder(bases), outermost(bases)
    items = name_items(search.found, search.addresses, root, folders)
    search.found.clear()
    items.sort(key=lambda item: item.key.replace("/", "\0").encode())  # bytes are the smallest such keys
    return Sources(
        items=tuple(items),
        root=root,
        folders=folders,
        default_output=default_output(
            root, is_named=not search.bases or root in search.named, cwd=search.cwd
        ),
        ignored=Counter(
            itertools.chain.from_iterable(counts.elements() for counts in search.ignored.values())
        ),
        skipped_folders=tuple(sorted(search.skipped)),
        unreadable=tuple(sorted(search.unreadable.items())),
        duplicates=search.duplicates,
        depth=search.branches.depth or 0,
    )


class _Folder(NamedTuple):
    """A folder to look into.

    Attributes:
        path: absolute.
        places: of the pattern that the names so far have come to; None where all that it holds is meant.
        trail: its path and those of the folders above it.
        linked: it or one of those is a link.
    """

    path: str
    places: frozenset[int] | None
    trail: tuple[str, ...]
    linked: bool


class _Search:
    """What was found so far; see `Sources` for the meaning of its attributes."""

    def __init__(
        self,
        is_picture: Callable[[str], bool],
        live: Callable[[str], str | None],
        exclude: Sequence[str],
        cwd: str | None,
        *,
        may_be_empty: bool = False,
        branches: Branches | None = None,
    ) -> None:
        try:
            cwd = os.path.abspath(cwd or os.getcwd())
        except OSError as error:
            raise SourceError(
                f"the current folder is gone: {reason(error)}", hint="change to one that exists"
            ) from error
        self.is_picture, self.live, self.cwd = is_picture, live, cwd
        self.branches, self._may_be_empty = branches or Branches(depth=0), may_be_empty
        self.found: dict[str, None] = {}
        self.addresses: dict[str, str] = {}  # by name
        self.bases: set[str] = set()  # folders that were named or hold a file that was
        self.named: set[str] = set()  # the former
        # By folder: one visited twice counts once
        self.ignored: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.skipped: set[str] = set()
        self.unreadable: dict[str, str] = {}
        self.duplicates = 0
        self.identities: dict[str, tuple[int, int] | None] = {}
        folders = [absolute(folder, cwd) for folder in exclude]
        self.excluded = {self.identity(folder) for folder in folders} - {None}
        self.excluded_addresses = list(filter(remote.is_remote, folders))
        self.excluded_names = {os.path.basename(folder).casefold() for folder in folders}

    @property
    def may_be_empty(self) -> bool:
        """Whether a folder need not hold anything: what there is may lie in branches that others list."""
        return self._may_be_empty or self.branches.left_out > 0

    def add(self, source: str) -> None:
        if source.startswith("@"):
            return self.add_list(source[1:])
        if name := self.live(source):
            self.addresses[name] = source
            return None
        path, parts, is_folder = self.locate(source)
        if archives.is_compressed(path):
            raise SourceError(
                f"{source}: a compressed tar archive can be read only from its front",
                hint="gunzip it: a .tar is read as it lies there; or unpack it",
            )
        if remote.is_remote(path) and not is_folder and path.lower().endswith((".zip", ".tar")):
            raise SourceError(f"{source}: archives are read from disks only", hint="copy it here first")
        if not is_folder:
            return self.take(path, os.path.dirname(path))
        try:
            pattern = Pattern([part for part in parts if part not in ("", ".")]) if parts else None
        except re.error as bad:
            raise SourceError(f"{source} is not a valid pattern: {bad}") from bad
        if remote.is_remote(path) or (pattern is None and not os.path.isdir(path)):
            return self.add_members(source, path, pattern)
        return self.add_folder(source, path, pattern)

    def locate(self, source: str) -> tuple[str, list[str], bool]:
        """Look where a source is.

        Returns:
            The absolute path of the file or folder; of a pattern the folder it begins in, and its components;
            whether it is a folder.

        Raises:
            SourceError: it is not there, and no pattern.
        """
        if not source:
            raise SourceError("a source has an empty name")
        path = absolute(source, self.cwd)
        if remote.is_remote(path):
            return self.locate_remote(source, path)
        try:
            if archives.exists(path) or archives.is_folder(path):  # a file in an archive, or a folder in one
                return path, [], archives.is_folder(path) and not stores.is_store(path)
            return path, [], stat.S_ISDIR(os.stat(path).st_mode) and not stores.is_store(path)
        except ValueError as error:
            raise SourceError(f"{source!r} cannot be a file name: {error}") from error
        except OSError as error:
            if os.path.lexists(path):  # a broken link: it was named, so decoding reports it
                return path, [], False
            return *self.split_pattern(source, error), True

    def locate_remote(self, source: str, url: str) -> tuple[str, list[str], bool]:
        """The same for an address."""
        try:
            if remote.is_folder(url):
                return url, [], True
            if remote.is_http(url) or remote.exists(
                url
            ):  # what cannot be listed is asked for when it is read
                return url, [], False
        except OSError as error:
            raise SourceError(f"{source} cannot be read: {reason(error)}") from error
        steps = url.split("/")
        if (first := next((n for n, step in enumerate(steps) if MAGIC.search(step)), 0)) < 3:
            raise SourceError(f"{source} does not exist", hint="look for typing errors in bucket and key")
        return "/".join(steps[:first]), steps[first:], True

    def add_folder(self, source: str, top: str, pattern: Pattern | None = None) -> None:
        before = len(self.unreadable), len(self.skipped)
        taken, others = self.walk(top, pattern)
        if top in self.unreadable:
            hint = "check its permissions" if os.path.exists(top) else _nearby(top)
            raise SourceError(f"{source}: {top} cannot be listed: {self.unreadable[top]}", hint=hint)
        if taken or (self.may_be_empty and top not in self.skipped):
            self.bases.add(top)
            if pattern is None:
                self.named.add(top)
        elif top not in self.skipped:
            others += Counter({"folders that cannot be listed": len(self.unreadable) - before[0]})
            others += Counter({"folders of outputs": len(self.skipped) - before[1]})
            raise SourceError(f"{source} {'matches' if pattern else 'holds'} {_census(others)}")

    def add_members(self, source: str, top: str, pattern: Pattern | None = None) -> None:
        """Take the pictures in an archive, below a folder in one, or below an address."""
        is_remote = remote.is_remote(top)
        others = Counter[str]()
        try:
            below = list(archives.below(top, self.branches))
            outputs = self.remote_outputs(below) if is_remote else []
        except OSError as error:
            raise SourceError(f"{source} cannot be read: {reason(error)}") from error
        taken, separator = 0, "/" if is_remote else os.sep
        ways: dict[str, bool | None] = {"": True}  # by folder: whether what lies there is looked at
        for path in below:
            if outputs and (folder := next((each for each in outputs if is_below(path, each)), None)):
                self.skipped.add(folder)
                continue
            name = path[len(top) + 1 :]
            above, slash, last = name.rpartition(separator)
            if (way := f"{above}{slash}") not in ways:
                steps = above.split(separator)
                is_possible = not is_remote or _NO_NAMES.isdisjoint(steps)
                ways[way] = not any(map(_is_hidden, steps)) if is_possible else None
            if ways[way] is None or (is_remote and last in _NO_NAMES):
                self.unreadable[path] = "no file can have such a name: a part of it is empty, . or .."
                continue
            if not ways[way] or _is_hidden(last):
                continue
            if pattern is not None and not pattern.matches(name.split(separator)):
                continue
            if self.is_picture(path) or (pattern is not None and pattern.names_extension):
                self.take(path)
                taken += 1
            else:
                others[os.path.splitext(path)[1].lower()] += 1
        if not taken and not (is_remote and (self.skipped or self.branches.left_out)):
            raise SourceError(f"{source} {'matches' if pattern else 'holds'} {_census(others)}")
        if taken or (is_remote and self.branches.left_out):
            self.bases.add(top)
            if pattern is None:
                self.named.add(top)
        self.ignored[top] |= others

    def remote_outputs(self, paths: Sequence[str]) -> list[str]:
        """Folders among listed addresses that are left out: the one that results go to, and earlier ones."""
        reports = (path for path in paths if path.endswith("/run.json"))
        marked = [path for path in reports if b"".join(remote.head(path, 64).split()).startswith(MARKER)]
        return [*self.excluded_addresses, *map(os.path.dirname, marked)]

    def add_list(self, name: str) -> None:
        entries = read_list(name, self.cwd)
        for entry in entries:
            # An address is not asked for what it is: that would take a request for each line. A missing file
            # is taken as well: decoding reports it by its name.
            is_remote = remote.is_remote(entry)
            is_folder = remote.is_named_folder(entry) if is_remote else archives.is_folder(entry)
            if not is_folder or (not is_remote and stores.is_store(entry)):
                self.take(entry, os.path.dirname(entry))
                continue
            try:
                if os.path.isdir(entry):
                    self.add_folder(entry, entry)
                else:
                    self.add_members(entry, entry)
            except SourceError as error:  # one of many: reported, like a missing file
                self.unreadable.setdefault(entry, error.message.removeprefix(f"{entry} "))

    def split_pattern(self, source: str, error: OSError) -> tuple[str, list[str]]:
        """The folder that a pattern begins in, and the rest; `error` says why it is no file's name."""
        drive, rest = os.path.splitdrive(source)
        parts = rest.replace(os.altsep or os.sep, os.sep).split(os.sep)
        base = os.path.join(self.cwd, drive if parts[0] else drive + os.sep)
        while parts and (not MAGIC.search(parts[0]) or os.path.lexists(os.path.join(base, parts[0]))):
            base = os.path.join(base, parts.pop(0))  # `[2024]` names the folder of that name, if there is one
        base = absolute(base, self.cwd)
        if not parts:
            why = (
                "does not exist"
                if isinstance(error, FileNotFoundError)
                else f"cannot be read: {reason(error)}"
            )
            raise SourceError(f"{source} {why}", hint=_nearby(base))
        return base, parts

    def take(self, path: str, base: str | None = None) -> None:
        self.duplicates += path in self.found
        self.found[path] = None
        if base is not None:
            self.bases.add(base)

    def walk(self, top: str, pattern: Pattern | None = None) -> tuple[int, Counter[str]]:
        """Take the pictures below `top`; return how many there are, and what other files, by extension."""
        taken, others = 0, Counter[str]()
        level = [_Folder(top, pattern.start if pattern else None, (top,), False)]
        depth = 0
        while level:
            below: list[_Folder] = []
            for folder in level:
                found, left = self.look_into(folder, pattern, below)
                taken, others = taken + found, others + left
            depth += 1
            level = list(self.branches.narrow(below, depth, lambda folder: name_below(top, folder.path)))
        return taken, others

    def look_into(
        self, folder: _Folder, pattern: Pattern | None, below: list[_Folder]
    ) -> tuple[int, Counter[str]]:
        """The same of one folder alone; those in it that are to be looked into are added to `below`."""
        taken, others = 0, Counter[str]()
        places = folder.places
        if pattern and places is not None and pattern.end in places:
            places = None  # the folder itself is meant, with all that it holds
        try:
            with os.scandir(folder.path) as listing:
                entries = list(listing)
        except OSError as error:
            self.unreadable[folder.path] = reason(error)
            return 0, others
        is_top = len(folder.trail) == 1
        if _holds_outputs(entries) or (is_top and self.identity(folder.path) in self.excluded):
            self.skipped.add(folder.path)
            return 0, others
        for entry in entries:
            name = entry.name
            if _is_hidden(name):
                continue
            then = None
            if pattern and places is not None:
                then = pattern.step(places, name)
                if not then:
                    continue
            try:
                is_folder = entry.is_dir() and not stores.is_store(entry.path)
            except OSError:  # a link that leads in circles, or to where we may not look
                is_folder = False
            if is_folder:
                # Only links lead back, and only below one may a folder have two names. Windows has more
                # than links.
                through_link = folder.linked or entry.is_symlink() or os.name == "nt"
                identity = None
                if through_link or name.casefold() in self.excluded_names:
                    identity = self.identity(entry.path)
                if identity and identity in self.excluded:
                    self.skipped.add(entry.path)
                elif not (identity and through_link and identity in map(self.identity, folder.trail)):
                    below.append(_Folder(entry.path, then, (*folder.trail, entry.path), through_link))
            elif pattern and then and pattern.end not in then:
                continue
            elif self.is_picture(entry.path) or (pattern and then and pattern.names_extension):
                self.take(entry.path)
                taken += 1
            else:
                extension = os.path.splitext(name)[1].lower()
                others[extension] += 1
                if (
                    not re.search("[a-z]", extension)
                    and entry.is_symlink()
                    and not os.path.exists(entry.path)
                ):
                    # A folder, perhaps
                    self.unreadable[entry.path] = "a link to something that is not there"
        if others:
            self.ignored[folder.path] |= others
        return taken, others

    def identity(self, path: str) -> tuple[int, int] | None:
        if path not in self.identities:
            try:
                found = os.stat(path)
                # Some network drives of Windows number all files 0.
                self.identities[path] = (found.st_dev, found.st_ino) if found.st_ino else None
            except (OSError, ValueError):
                self.identities[path] = None
        return self.identities[path]


def _is_hidden(name: str) -> bool:
    """Whether a file or folder is left out for its name."""
    return name.startswith(".") or name.casefold() in _JUNK


def _holds_outputs(entries: list[os.DirEntry[str]]) -> bool:
    for entry in entries:
        if entry.name == "run.json":
            try:
                if entry.is_file():  # opening a pipe would wait forever
                    with open(entry.path, "rb") as file:
                        return b"".join(file.read(64).split()).startswith(MARKER)
            except OSError:
                return False
    return False


def _census(others: Counter[str]) -> str:
    kinds = [f"{count} {kind or 'without extension'}" for kind, count in others.most_common(8)]
    return f"0 pictures; {', '.join(kinds) or 'no other files'}{', and more' if len(others) > 8 else ''}"


def _nearby(path: str) -> str:
    """Suggest names like that of a missing file; long folders are read in part only."""
    try:
        with os.scandir(os.path.dirname(path)) as listing:
            names = [entry.name for entry in itertools.islice(listing, 2000)]
    except OSError:
        return f"there is no folder {os.path.dirname(path)}"
    close = difflib.get_close_matches(os.path.basename(path), names)
    return f"there is {', '.join(close)}" if close else ""
