"""The tables of a run: those of its pictures, one behind the other in the order of their keys.

Each picture has a table of its own, an output that is made, recorded and resumed like a mask. When a run
ends, they become `OUT/stats.csv` and `OUT/objects.csv`. Which there are stands in the manifest, and is not
held in memory: 100,000 take no more than 100.
"""

from __future__ import annotations

import os
import time
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping
from io import BytesIO
from itertools import accumulate, islice
from typing import TYPE_CHECKING, Any, BinaryIO

from unet_batch.files.atomic import remove
from unet_batch.files.naming import shown
from unet_batch.files.roots import source_path
from unet_batch.files.tables import TABLES, join, to_parquet
from unet_batch.run.manifest import Manifest, manifest_bytes
from unet_batch.run.ordered import OrderedRecords
from unet_batch.run.report import RunReport, load_report, run_name

if TYPE_CHECKING:
    from unet_batch.files.staging import RemoteFolder
    from unet_batch.run.plan import RunPlan
    from unet_batch.run.records import Record

_AT_ONCE, _BYTES = 256, 2**26  # tables, and bytes of them but for the last, that are asked of a server

Known = Mapping[str, Mapping[str, Any]]
"""Of each table that a run has written: its files, rows and pictures, how many pictures' own were damaged,
the bytes of the manifest that it is of, and the seconds that it took."""


def write_tables(
    folder: str,
    kinds: Collection[str],
    known: Known,
    now: int,
    *,
    parquet: bool,
    store: RemoteFolder | None = None,
) -> dict[str, dict[str, Any]]:
    """Write the tables of a run, unless they are as they would be.

    Args:
        folder: the output folder, locked.
        kinds: that this run was asked for.
        known: what the run before has written; it is brought up to date, asked for or not.
        now: the bytes of the manifest that they will be of.
        parquet: write Parquet as well; if not, a file of an earlier run goes, as it would no longer be true.
        store: what the folder stands for.

    Returns:
        What is known of them now.

    Raises:
        OutputError: one cannot be written.
        ManifestError: a manifest cannot be read.
    """
    found: dict[str, dict[str, Any]] = {}
    for kind in TABLES:
        if kind not in kinds and kind not in known:
            continue
        csv_name, parquet_name = f"{kind}.csv", f"{kind}.parquet"
        before, files = known.get(kind, {}), [csv_name, *([parquet_name] if parquet else [])]
        if (
            before.get("manifest") == now
            and before.get("files") == files
            and _are_there(folder, files, store)
        ):
            found[kind] = dict(before)
            continue
        begun, path = time.monotonic(), os.path.join(folder, csv_name)
        with OrderedRecords(folder) as records:
            joined = join(path, kind, _own_tables(folder, kind, records, store))
        if parquet:
            to_parquet(os.path.join(folder, parquet_name), path, kind)
        else:
            remove([os.path.join(folder, parquet_name)])
        if store is not None:
            store.upload(files)
            if not parquet:
                store.discard([parquet_name])
        found[kind] = {
            "files": files,
            "rows": joined.rows,
            "pictures": joined.pictures,
            "damaged": joined.damaged,
            "manifest": now,
            "seconds": round(time.monotonic() - begun, 3),
        }
    return found


def finish_tables(plan: RunPlan, report: RunReport, manifest: Manifest) -> None:
    """Bring the tables of a folder up to date when a run has ended, and put into its report what they are.

    Raises:
        OutputError: one cannot be written.
    """
    folder, known, now = manifest.folder, report.tables, manifest_bytes(manifest.folder)
    if manifest.is_as_read:  # what the manifest has gained says nothing of items
        known = {
            kind: {**facts, "manifest": now} if facts.get("manifest") == manifest.bytes else facts
            for kind, facts in known.items()
        }
    options, store = plan.options, plan.outputs.store
    report.tables = write_tables(folder, options.save, known, now, parquet=options.parquet, store=store)
    report.notes = (*report.notes, *notes_on(report.tables))


def known_of(folder: str) -> Known:
    """What the run before has written of tables."""
    found = (load_report(os.path.join(folder, run_name(""))) or {}).get("tables")
    return found if isinstance(found, dict) and all(isinstance(each, dict) for each in found.values()) else {}


def notes_on(tables: Known) -> Iterator[str]:
    """What people should know of tables."""
    for kind, facts in tables.items():
        if damaged := facts.get("damaged"):
            yield f"{kind}.csv lacks {damaged:,} pictures: their own tables cannot be read, or were changed"


def _are_there(folder: str, files: Iterable[str], store: RemoteFolder | None) -> bool:
    there = {*os.listdir(folder)} if store is None else store.names()
    return there.issuperset(files)


def _own_tables(
    folder: str, kind: str, records: Iterable[Record], store: RemoteFolder | None
) -> Iterator[tuple[str, str, BinaryIO | None]]:
    """Source, key and table of each record."""
    with_table = (record for record in records if record.outputs.get(kind))
    own = _on_disk(folder, kind, with_table) if store is None else _in_store(store, kind, with_table)
    for record, table in own:
        source = "" if record.identity is None else source_path(record.root, record.identity.source)
        yield shown(source), record.key, table


def _on_disk(folder: str, kind: str, records: Iterable[Record]) -> Iterator[tuple[Record, BinaryIO | None]]:
    for record in records:
        try:
            table = open(os.path.join(folder, *record.outputs[kind][0][0].split("/")), "rb")  # noqa: SIM115
        except (OSError, ValueError):
            yield record, None
            continue
        with table:
            yield record, table


def _in_store(
    store: RemoteFolder, kind: str, records: Iterable[Record]
) -> Iterator[tuple[Record, BinaryIO | None]]:
    while some := list(islice(records, _AT_ONCE)):
        while some:
            sizes = list(accumulate(record.outputs[kind][0][1] for record in some))
            count = max(1, bisect_right(sizes, _BYTES))
            contents = store.contents([record.outputs[kind][0][0] for record in some[:count]])
            for record, data in zip(some, contents, strict=False):
                yield record, None if data is None else BytesIO(data)
            del some[:count]
