"""What a run is to do: the items that the sources name, compared with what earlier runs recorded.

plan = prepare(options)        # sources and output folder: nothing is written, no model is loaded
plan = resume(plan, recipe)    # what is left of it, once the model is known; writes nothing either
"""

from __future__ import annotations

import dataclasses
import errno
import gc
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from unet_batch.errors import DecoderCrashed, ManifestError, UsageError
from unet_batch.files import archives, naming, remote
from unet_batch.files.atomic import translate
from unet_batch.files.outputs import CLIP_KINDS, KINDS, PICTURE_KINDS, OutputTree
from unet_batch.files.roots import source_path
from unet_batch.files.sources import Sources, collect
from unet_batch.inference.views import ViewOptions
from unet_batch.media import images, video
from unet_batch.run import report as reports
from unet_batch.run.dealing import ends_of, known_depth, others_alone
from unet_batch.run.destination import choose_output, named_output
from unet_batch.run.layout import ClipLayout
from unet_batch.run.manifest import Manifest, Share
from unet_batch.run.options import RunOptions
from unet_batch.run.recipe import recipe_of_models
from unet_batch.run.records import (
    FINISHED,
    Files,
    Identity,
    Listing,
    OutputRecipe,
    Record,
    State,
    list_outputs,
    sha256_of,
)
from unet_batch.types import Item

if TYPE_CHECKING:
    from unet_batch.run.shard import Shard

_CRASHED = f"decode: {DecoderCrashed.__name__}"  # as the manifest has it


@dataclass(frozen=True)
class RunPlan:
    """What a run will do.

    Attributes:
        options: as asked.
        sources: what was found.
        outputs: where the results go.
        items: those of the shard; without one, all.
        todo: the items to segment; all of them until `resume` has compared them with the manifest.
        states: how many items are in which `records.State`; `adopted` were made before there were manifests.
        manifest: what is done; None before `resume`.
        records: what to record before the first item.
        quarantined: items that crashed their decoder and are not tried again unless decoders are isolated.
        absent: keys of the items whose source could not be looked at.
        notes: what people should know.
        depth: of the folders that are dealt to shards, as components of keys; 0 if single items are.
    """

    options: RunOptions
    sources: Sources
    outputs: OutputTree
    items: tuple[Item, ...]
    todo: tuple[Item, ...]
    states: Mapping[str, int] = field(default_factory=dict)
    manifest: Manifest | None = None
    records: tuple[Record, ...] = ()
    quarantined: tuple[Item, ...] = ()
    absent: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    depth: int = 0

    def kinds(self, item: Item) -> tuple[str, ...]:
        """What is wanted of an item, as the manifest names it: options that decide what it is are in it."""
        options = self.options
        return options.video.names(options.save, options.style) if item.is_clip else self.outputs.names

    def paths(self, item: Item) -> list[str]:
        """Where the outputs of an item go; for the frames of a clip their folder."""
        if not item.is_clip:
            return [self.outputs.shown_path(self.outputs.path(kind, item.key)) for kind in self.outputs.kinds]
        layout = ClipLayout(self.outputs.folder, self.options.save, video.CODECS[self.options.video.codec])
        return [self.outputs.shown_path(layout.path(kind, item.key)) for kind in (*layout.kinds, "timeline")]

    @property
    def skipped(self) -> int:
        """How many items have all their outputs already."""
        return len(self.items) - len(self.todo) - len(self.quarantined)

    @property
    def part(self) -> str:
        """`2-of-8` for a shard, else ""."""
        return self.options.shard.part if self.options.shard else ""

    def identity(self, item: Item) -> Identity | None:
        """Look at the source of an item."""
        return Identity.of(item.path, self.sources.relative(item.path))


@contextmanager
def _no_search_for_garbage() -> Iterator[None]:
    """Keep Python from looking for garbage among what 100,000 items are made of: nearly all of it stays."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@_no_search_for_garbage()
def prepare(options: RunOptions, *, may_be_empty: bool = False) -> RunPlan:
    """Find the sources, and say where their results go. Writes nothing.

    Args:
        options: as asked.
        may_be_empty: folders need not hold anything yet.

    Raises:
        SourceError: a source does not exist or holds nothing to segment.
        UsageError: nothing to save, an unknown kind of output, or the output folder is a source or a file.
        OutputError: a file lies where the output folder would.
    """
    if not options.save:
        raise UsageError("nothing to save was asked for", hint=f"choose from: {', '.join(KINDS)}")
    exclude = [] if options.output is None else [named_output(options)]

    def find(depth: int | None) -> Sources:
        return collect(
            options.sources,
            is_picture=_is_source,
            live=naming.live_name,
            exclude=exclude,
            may_be_empty=may_be_empty,
            branches=None if shard is None else shard.branches(depth),
        )

    shard = options.shard
    kinds = [kind for kind in options.save if kind in PICTURE_KINDS]
    # What the first of the shards has seen decides for all of them, also where folders were added since.
    known = _known_depth(OutputTree(exclude[0], kinds), shard) if exclude else None
    sources = find(known)
    folder, notes = (exclude[0], ()) if exclude else choose_output(sources)
    if os.path.lexists(folder) and not os.path.isdir(folder):
        raise translate(NotADirectoryError(errno.ENOTDIR, ""), folder, 0)
    outputs = OutputTree(folder, kinds, options.style)
    if not exclude and (known := _known_depth(outputs, shard)) not in (None, sources.depth):
        sources = find(known)
    depth = sources.depth if known is None else known
    sources = _mark_clips(sources)
    _check_kinds(options.save, sources.items)
    if shard is None:
        return RunPlan(options, sources, outputs, sources.items, sources.items, notes=notes)
    items = tuple(item for item in sources.items if shard.takes(item.key, depth))
    unreadable = tuple(found for found in sources.unreadable if _is_ours(shard, depth, sources, found[0]))
    sources = dataclasses.replace(sources, unreadable=unreadable)
    return RunPlan(options, sources, outputs, items, items, notes=notes, depth=depth)


def _known_depth(outputs: OutputTree, shard: Shard | None) -> int | None:
    return None if shard is None else known_depth(ends_of(outputs, shard.count))


def _is_ours(shard: Shard, depth: int, sources: Sources, path: str) -> bool:
    """Whether this shard is to tell of a folder that it could not list: one does."""
    name = sources.relative(path)
    if depth and name.count("/") >= depth - 1:
        return shard.takes_folder(naming.folder_key("/".join(name.split("/")[:depth])))
    return shard.number == 1


def _is_source(path: str) -> bool:
    """Tell whether a file found in a folder is a picture or a clip; of an archive only pictures are read."""
    if images.is_supported(path) or images.is_unnamed_dicom(path):
        return True
    return video.is_clip(path) and not archives.archive_of(path) and not video.is_foreign(path)


def _mark_clips(sources: Sources) -> Sources:
    """Tell clips from pictures, by their names."""
    items = tuple(
        dataclasses.replace(item, is_clip=True)
        if video.is_clip(item.path) or naming.is_live(item.path)
        else item
        for item in sources.items
    )
    return dataclasses.replace(sources, items=items)


def _check_kinds(kinds: Sequence[str], items: Sequence[Item]) -> None:
    """See that something of what is wanted can be made of each item."""
    clips = sum(item.is_clip for item in items)
    for count, what, possible in (
        (clips, "clip", CLIP_KINDS),
        (len(items) - clips, "picture", PICTURE_KINDS),
    ):
        if count and not set(kinds).intersection(possible):
            raise UsageError(
                f"--save {','.join(kinds)}: none of it can be made of a {what}; the sources hold {count:,}",
                hint=f"add {' or '.join(possible)}, or leave the {what}s out",
            )
    pictures = [item.path for item in items if not item.is_clip] if "dicomseg" in kinds else []
    if pictures and not any(map(images.may_be_dicom, pictures)):
        raise UsageError(
            f"--save dicomseg: a segmentation refers to a DICOM picture, and none of the {len(pictures):,} "
            "pictures is called like one",
            hint="save mask instead",
        )


@_no_search_for_garbage()
def resume(plan: RunPlan, recipe: OutputRecipe) -> RunPlan:
    """Compare the items with what earlier runs recorded. Writes nothing.

    Returns:
        The plan, its `todo` what is left.

    Raises:
        ManifestError: the folder holds outputs of another recipe, of other pictures of the same names, or
            that nobody vouches for, and overwriting was not asked for; or a newer version has written its
            manifest.
        OutputError: the folder cannot be listed.
    """
    folder, overwrite = plan.outputs.name, plan.options.overwrite
    shard, depth = plan.options.shard, plan.depth
    others: frozenset[str] = frozenset()
    if shard is not None:
        others = others_alone(ends_of(plan.outputs, shard.count), plan.part, depth, recipe.digest)
    if plan.outputs.store is not None:
        plan.outputs.store.fetch(others)
    ours = None if shard is None else partial(shard.takes, depth=depth)
    manifest = Manifest(plan.outputs.folder, plan.part, depth, Share(ours, recipe.digest, others))
    branches = shard.branches(depth) if shard is not None and not manifest.is_mixed else None
    listing = list_outputs(plan.outputs, branches)

    # Outputs from before there were manifests count if they are of this recipe.
    adopted = _find_adoptable(plan, recipe, listing) if manifest.is_new and not overwrite else {}

    # Outputs of two recipes are never mixed unasked.
    foreign = manifest.made_otherwise(recipe.digest, listing)
    if foreign and not overwrite:
        raise ManifestError(
            f"{folder} holds outputs of "
            + "; ".join(f"{count:,} items by model {label}" for label, count in foreign.most_common())
            + f". This run would use model {recipe.label}",
            hint="choose another folder with -o, or redo them with --overwrite",
        )

    comparison = _Comparison(plan, recipe, manifest, listing, adopted)
    comparison.add_all()

    # Nor are outputs of two pictures of the same name.
    if comparison.namesakes and not overwrite:
        root, count = comparison.namesakes.most_common(1)[0]
        raise ManifestError(
            f"{folder} holds outputs of {count:,} other pictures of the same names, from {root}",
            hint="choose another folder with -o, or replace them with --overwrite",
        )

    notes = (*plan.notes, *comparison.notes(bool(foreign)))
    manifest.keep(item.key for item in comparison.todo)
    return dataclasses.replace(
        plan,
        todo=tuple(comparison.todo),
        states=dict(comparison.states),
        manifest=manifest,
        records=tuple(comparison.records),
        quarantined=tuple(comparison.quarantined),
        absent=frozenset(comparison.absent),
        notes=notes,
    )


class _Comparison:
    """Sorts the items of a plan by what earlier runs recorded of them; see `RunPlan` for the attributes."""

    def __init__(
        self,
        plan: RunPlan,
        recipe: OutputRecipe,
        manifest: Manifest,
        listing: Listing,
        adopted: Mapping[str, Mapping[str, Files]],
    ) -> None:
        self.plan, self.options = plan, plan.options
        self.recipe, self.manifest, self.listing, self.adopted = recipe, manifest, listing, adopted
        self.states: Counter[str] = Counter()
        self.todo: list[Item] = []
        self.records: list[Record] = []
        self.quarantined: list[Item] = []
        self.absent: list[str] = []
        self.namesakes: Counter[str] = Counter()
        self._kinds: dict[bool, tuple[str, ...]] = {}  # of pictures, and of clips

    def add_all(self) -> None:
        """Sort all items of the plan in."""
        items, known, relative = self.plan.items, self.manifest.records, self.plan.sources.relative
        for item, facts in zip(items, archives.stat_each(item.path for item in items), strict=True):
            if facts is None:
                self.absent.append(item.key)
            if item.key in known or item.key in self.adopted:
                self._add(item, Identity(relative(item.path), *facts) if facts else None)
            else:  # one of a million
                self.todo.append(item)
                self.states["new"] += 1

    def _add(self, item: Item, identity: Identity | None) -> None:
        """Sort in one of which something is known."""
        if (kinds := self._kinds.get(item.is_clip)) is None:
            kinds = self._kinds[item.is_clip] = self.plan.kinds(item)
        contents = partial(sha256_of, item.path) if self.options.hash_sources else None
        found = self.manifest.state(item.key, identity, self.recipe.digest, kinds, self.listing, contents)
        if found == "done" and not self.options.overwrite:  # as nearly all are
            self.states[found] += 1
            return
        state, record = self._judge(item, identity, found)
        if record is not None:
            self.records.append(record)
        if state == "quarantined":
            self.quarantined.append(item)
        elif state not in (*FINISHED, "adopted"):
            self.todo.append(item)
        self.states[state] += 1

    def _judge(self, item: Item, identity: Identity | None, state: State) -> tuple[str, Record | None]:
        """What an item's state means for this run, and what to record of it before."""
        digest, before = self.recipe.digest, self.manifest.records.get(item.key)
        root_of = self.plan.sources.root_of
        if state == "changed" and before is not None and _is_namesake(before, item.path):
            self.namesakes[before.root] += 1

        # To be overwritten: on record at once, so that when this run is cut short, the next one needs no
        # --overwrite to go on.
        if self.options.overwrite and (state in FINISHED or state == "other"):
            return "void", Record(item.key, "void")

        # Touched: recorded with its new time, so that its contents need not be read again.
        if state == "touched" and before is not None and before.identity is not None and identity is not None:
            identity = identity._replace(sha256=before.identity.sha256)
            return state, before._replace(identity=identity, root=root_of(item.path))

        # From before there were manifests.
        if item.key in self.adopted and identity is not None:
            outputs = self.adopted[item.key]
            return "adopted", Record(item.key, "done", identity, digest, outputs, root=root_of(item.path))

        # What crashed a decoder would end this process, too.
        is_crash = state == "failed" and before is not None and _has_crashed(before, identity)
        if is_crash and not self.options.isolate:
            return "quarantined", None
        return state, None

    def notes(self, made_otherwise: bool) -> list[str]:
        """What people should know: outputs of another recipe that stay, and damage of the manifest."""
        manifest, notes = self.manifest, []
        if made_otherwise:
            ours = {record.key for record in self.records} | {item.key for item in self.plan.sources.items}
            records, digest = manifest.records.values(), self.recipe.digest
            if rest := sum(record.key not in ours and record.recipe != digest for record in records):
                notes.append(
                    f"outputs of {rest:,} items that are not among these sources stay as another model made "
                    "them"
                )
        if manifest.damaged:
            notes.append(
                f"{manifest.damaged:,} damaged lines in the manifest are ignored, as a power cut leaves them"
            )
        return notes


def _has_crashed(record: Record, identity: Identity | None) -> bool:
    """Whether a record says that this very file ended the process that decoded it."""
    same = record.identity is not None and identity is not None and identity.is_of(record.identity)
    return same and record.error == _CRASHED


def _is_namesake(record: Record, path: str) -> bool:
    """Whether a record is of another picture than `path`, which still exists under its own name."""
    if record.identity is None or not record.root:
        return False
    other = source_path(record.root, record.identity.source)
    try:
        if remote.is_remote(other) or remote.is_remote(path):
            return other != path and archives.exists(other)
        if archives.archive_of(other) or archives.archive_of(path):
            return archives.exists(other) and os.path.realpath(other) != os.path.realpath(path)
        return os.path.exists(other) and not os.path.samefile(other, path)
    except OSError:  # `path` itself is gone
        return True


def _find_adoptable(plan: RunPlan, recipe: OutputRecipe, listing: Listing) -> dict[str, dict[str, Files]]:
    """Find outputs from before there were manifests, by key and kind.

    Raises:
        ManifestError: there are some, and `run.json` does not say that they are of this recipe.
    """
    found: dict[str, dict[str, Files]] = {}
    tree = plan.outputs
    items = plan.items if any(listing.holds(KINDS[kind].folder) for kind in tree.kinds) else ()
    for item in items:
        if item.is_clip:
            continue
        files = {name: tree.file(kind, item.key) for kind, name in zip(tree.kinds, tree.names, strict=True)}
        there: dict[str, Files] = {
            k: ((file, size),) for k, file in files.items() if (size := listing.size(file)) is not None
        }
        if there:
            found[item.key] = there
    if not found:
        return {}
    some = f"{plan.outputs.name} holds outputs for {len(found):,} of these items"
    hint = "choose another folder with -o, or replace them with --overwrite"
    earlier = reports.load_report(os.path.join(plan.outputs.folder, reports.run_name("")))
    try:
        if earlier is None:
            raise KeyError("run.json")
        model, backend = earlier["model"], earlier["backend"]
        threshold = None if len(model["classes"]) > 1 else float(backend["threshold"])
        last = recipe_of_models(
            [(model["sha256"], model["name"], backend["input_size"], ViewOptions())], threshold
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ManifestError(f"{some} of which no manifest tells who made them", hint=hint) from error
    if last.digest != recipe.digest:
        raise ManifestError(
            f"{some}, made by model {last.label}. This run would use model {recipe.label}", hint=hint
        )
    kinds = len(plan.outputs.kinds)
    return {
        key: there
        for key, there in found.items()
        if len(there) == kinds and all(size for [(_, size)] in there.values())
    }
