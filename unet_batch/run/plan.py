"""What a run is to do: the items that the sources name, compared with what earlier runs recorded.

plan = prepare(options)        # sources and output folder: nothing is written, no model is loaded
plan = resume(plan, recipe)    # what is left of it, once the model is known; writes nothing either
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from unet_batch.errors import DecoderCrashed, ManifestError, UsageError
from unet_batch.files import naming
from unet_batch.files.outputs import CLIP_KINDS, KINDS, PICTURE_KINDS, OutputTree
from unet_batch.files.sources import Sources, collect, default_output
from unet_batch.media import images, video
from unet_batch.run import clip as clips
from unet_batch.run import report as reports
from unet_batch.run.manifest import FINISHED, Files, Identity, Listing, Manifest, Recipe, Record, sha256_of
from unet_batch.run.report import run_name
from unet_batch.run.shard import Shard
from unet_batch.types import Item

if TYPE_CHECKING:
    from unet_batch.inference.segmenter import Segmenter

# Of the recipe: raise it when the same model gives other pixels, as after a change of `geometry` or
# `postprocess`.
RULES = 1
_CRASHED = f"decode: {DecoderCrashed.__name__}"  # as the manifest has it


@dataclass(frozen=True)
class RunOptions:
    """What to segment and what to write; see `unet-batch run --help`."""

    sources: tuple[str, ...]
    output: str | None = None
    save: tuple[str, ...] = ("mask",)
    overwrite: bool = False
    fail_fast: bool = False
    max_errors: int | None = None
    shard: Shard | None = None
    wait: bool = False
    hash_sources: bool = False
    isolate: bool = False
    video: clips.VideoOptions = field(default_factory=clips.VideoOptions)


@dataclass(frozen=True)
class Plan:
    """What a run will do.

    Attributes:
        options: as asked.
        sources: what was found.
        outputs: where the results go.
        items: those of the shard; without one, all.
        todo: the items to segment; all of them until `resume` has compared them with the manifest.
        states: how many items are in which `manifest.State`; `adopted` were made before there were manifests.
        manifest: what is done; None before `resume`.
        records: what to record before the first item.
        quarantined: items that crashed their decoder and are not tried again unless decoders are isolated.
        absent: keys of the items whose source could not be looked at.
        notes: what people should know.
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

    def kinds(self, item: Item) -> tuple[str, ...]:
        """What is wanted of an item, as the manifest names it. Of clips, what was asked for is part of the
        name.
        """
        return self.options.video.names(self.options.save) if is_clip(item) else self.outputs.kinds

    def paths(self, item: Item) -> list[str]:
        """Where the outputs of an item go; for the frames of a clip their folder."""
        if not is_clip(item):
            return [self.outputs.path(kind, item.key) for kind in self.outputs.kinds]
        layout = clips.Layout(self.outputs.folder, self.options.save, video.CODECS[self.options.video.codec])
        return [layout.path(kind, item.key) for kind in (*layout.kinds, "timeline")]

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
        root = self.sources.root
        below = len(root if root.endswith(os.sep) else root + os.sep)
        return Identity.of(item.path, item.path[below:].replace(os.sep, "/"))


def prepare(options: RunOptions) -> Plan:
    """Find the sources. Writes nothing, and looks at no output.

    Raises:
        SourceError: a source does not exist or holds nothing to segment.
        UsageError: nothing to save, or the output folder is a source.
        UsageError: an unknown kind of output.
    """
    if not options.save:
        raise UsageError("nothing to save was asked for", hint=f"choose from: {', '.join(KINDS)}")
    exclude = [os.path.abspath(options.output)] if options.output else []
    if exclude and exclude[0] in map(os.path.abspath, options.sources):
        raise UsageError(
            f"{options.output} is a source and cannot be the output folder as well: results would be read "
            f"as pictures",
            hint=f"choose another folder, for example -o {default_output(exclude[0])}",
        )
    sources = collect(
        options.sources,
        is_picture=lambda name: images.is_supported(name) or video.is_clip(name),
        live=naming.live_name,
        exclude=exclude,
    )
    _check_kinds(options.save, sources.items)
    outputs = OutputTree(
        options.output or default_output(sources.root), [kind for kind in options.save if kind in PICTURE_KINDS]
    )
    shard = options.shard
    items = sources.items if shard is None else tuple(item for item in sources.items if shard.takes(item.key))
    return Plan(options, sources, outputs, items, items)


def is_clip(item: Item) -> bool:
    """Whether an item is a video, a camera or an address, by its name."""
    return video.is_clip(item.path) or naming.is_live(item.path)


def _check_kinds(kinds: Sequence[str], items: Sequence[Item]) -> None:
    """See that something of what is wanted can be made of each item."""
    moving = sum(map(is_clip, items))
    for count, what, possible in (
        (moving, "clip", CLIP_KINDS),
        (len(items) - moving, "picture", PICTURE_KINDS),
    ):
        if count and not set(kinds).intersection(possible):
            raise UsageError(
                f"--save {','.join(kinds)}: none of it can be made of a {what}; the sources hold {count:,}",
                hint=f"add {' or '.join(possible)}, or leave the {what}s out",
            )


def recipe_of(segmenter: Segmenter, model: Mapping[str, Any]) -> Recipe:
    """What decides the pixels: the model's bytes, the threshold where it has one, the network's size, our own
    rules.

    Backend and precision are not in it. A backend is used only after its masks were proven equal to
    PyTorch's, and a night's work must not begin anew because the GPU was taken in the morning. Batch, streams
    and threads change nothing at all.
    """
    threshold = None if segmenter.spec.output == "class_ids" else segmenter.threshold
    return _recipe(str(model.get("sha256", "")), threshold, segmenter.backend.input_size, segmenter.spec.name)


def _recipe(sha256: str, threshold: float | None, input_size: Sequence[int], name: str) -> Recipe:
    facts = {"model": sha256, "threshold": threshold, "input_size": list(input_size), "rules": RULES}
    label = f"{name} (sha256 {sha256[:12]})" + (f", threshold {threshold:g}" if threshold is not None else "")
    return Recipe(facts, f"{label}, {input_size[0]}x{input_size[1]}")


def resume(plan: Plan, recipe: Recipe) -> Plan:
    """Compare the items with what earlier runs recorded. Writes nothing.

    Returns:
        The plan, its `todo` what is left.

    Raises:
        ManifestError: the folder holds outputs of another recipe, of other pictures of the same names, or
            that nobody vouches for, and overwriting was not asked for; or a newer version has written its
            manifest.
        OutputError: the folder cannot be listed.
    """
    options = plan.options
    manifest, listing = Manifest(plan.outputs.folder, plan.part), Listing(plan.outputs.folder)
    adopted = _adoptable(plan, recipe, listing) if manifest.is_new and not options.overwrite else {}
    others = manifest.made_otherwise(recipe.digest, listing)
    if others and not options.overwrite:
        raise ManifestError(
            f"{plan.outputs.folder} holds outputs of "
            + "; ".join(f"{count:,} items by {label}" for label, count in others.most_common())
            + f". This run would use {recipe.label}",
            hint="choose another folder with -o, or redo them with --overwrite",
        )
    states: Counter[str] = Counter()
    todo: list[Item] = []
    records: list[Record] = []
    quarantined: list[Item] = []
    absent: list[str] = []
    namesakes: Counter[str] = Counter()
    for item in plan.items:
        identity = plan.identity(item)
        if identity is None:
            absent.append(item.key)
        contents = (lambda path=item.path: sha256_of(path)) if options.hash_sources else None
        state: str = manifest.state(item.key, identity, recipe.digest, plan.kinds(item), listing, contents)
        before = manifest.records.get(item.key)
        if state == "changed" and before is not None and _is_namesake(before, plan.sources.root):
            namesakes[before.root] += 1
        if options.overwrite and (state in FINISHED or state == "other"):
            # On record at once: when this run is cut short, the next one needs no --overwrite to go on.
            state = "void"
            records.append(Record(item.key, "void"))
        elif (
            state == "touched" and before is not None and before.identity is not None and identity is not None
        ):
            identity = identity._replace(sha256=before.identity.sha256)
            records.append(before._replace(identity=identity, root=plan.sources.root))
        elif item.key in adopted and identity is not None:
            state = "adopted"
            records.append(
                Record(item.key, "done", identity, recipe.digest, adopted[item.key], root=plan.sources.root)
            )
        elif (
            state == "failed"
            and before is not None
            and _is_quarantined(before, identity)
            and not options.isolate
        ):
            state = "quarantined"
            quarantined.append(item)
        if state not in FINISHED and state not in ("adopted", "quarantined"):
            todo.append(item)
        states[state] += 1
    if namesakes and not options.overwrite:
        root, count = namesakes.most_common(1)[0]
        raise ManifestError(
            f"{plan.outputs.folder} holds outputs of {count:,} other pictures of the same names, from {root}",
            hint="choose another folder with -o, or replace them with --overwrite",
        )
    notes = []
    if others:
        ours = {record.key for record in records} | {item.key for item in plan.sources.items}
        rest = sum(
            record.key not in ours and record.recipe != recipe.digest for record in manifest.records.values()
        )
        if rest:
            notes.append(
                f"outputs of {rest:,} items that are not among these sources stay as another model made them"
            )
    if manifest.damaged:
        notes.append(
            f"{manifest.damaged:,} damaged lines in the manifest are ignored, as a power cut leaves them"
        )
    manifest.keep(item.key for item in todo)
    return dataclasses.replace(
        plan,
        todo=tuple(todo),
        states=dict(states),
        manifest=manifest,
        records=tuple(records),
        quarantined=tuple(quarantined),
        absent=frozenset(absent),
        notes=tuple(notes),
    )


def _is_quarantined(record: Record, identity: Identity | None) -> bool:
    """Whether a record says that this very file ended the process that decoded it."""
    same = record.identity is not None and identity is not None and identity.is_of(record.identity)
    return same and record.error == _CRASHED


def _is_namesake(record: Record, root: str) -> bool:
    """Whether a record is of a picture that still exists elsewhere, under the same name."""
    if record.identity is None or not record.root or record.root == root:
        return False
    return os.path.exists(os.path.join(record.root, *record.identity.source.split("/")))


def _adoptable(plan: Plan, recipe: Recipe, listing: Listing) -> dict[str, dict[str, Files]]:
    """Outputs that were there before there were manifests, by key and kind: taken over if the last run had
    this recipe.
    """
    found: dict[str, dict[str, Files]] = {}
    for item in plan.items:
        if is_clip(item):
            continue
        files = {kind: plan.outputs.file(kind, item.key) for kind in plan.outputs.kinds}
        there: dict[str, Files] = {
            k: ((file, size),) for k, file in files.items() if (size := listing.size(file)) is not None
        }
        if there:
            found[item.key] = there
    if not found:
        return {}
    some = f"{plan.outputs.folder} holds outputs for {len(found):,} of these items"
    hint = "choose another folder with -o, or replace them with --overwrite"
    earlier = reports.load(os.path.join(plan.outputs.folder, run_name("")))
    try:
        if earlier is None:
            raise KeyError("run.json")
        model, backend = earlier["model"], earlier["backend"]
        threshold = None if len(model["classes"]) > 1 else float(backend["threshold"])
        last = _recipe(model["sha256"], threshold, backend["input_size"], model["name"])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ManifestError(f"{some} of which no manifest tells who made them", hint=hint) from error
    if last.digest != recipe.digest:
        raise ManifestError(f"{some}, made by {last.label}. This run would use {recipe.label}", hint=hint)
    kinds = len(plan.outputs.kinds)
    return {
        key: there
        for key, there in found.items()
        if len(there) == kinds and all(size for [(_, size)] in there.values())
    }
