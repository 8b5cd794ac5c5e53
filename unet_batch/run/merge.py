"""Merge the manifests, reports and error lists of shards, then delete the shards' own."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from unet_batch.errors import ManifestError, UsageError
from unet_batch.files import archives, remote
from unet_batch.files.atomic import remove, replacing, write_atomic, write_json
from unet_batch.files.locks import claim
from unet_batch.files.roots import source_path
from unet_batch.run import report as reports
from unet_batch.run import tables
from unet_batch.run.dealing import differ, ends_here
from unet_batch.run.manifest import recipe_line, shard_parts
from unet_batch.run.ordered import OrderedRecords
from unet_batch.run.report import RunReport, errors_name, run_name
from unet_batch.types import Failure

if TYPE_CHECKING:
    from unet_batch.files.staging import RemoteFolder

_MANIFEST = "manifest.jsonl"
_DIFFER = (
    "shards have seen different folders when they began, and may have left items to each other: a run "
    "without --shard does what is left"
)


def merge(folder: str) -> RunReport:
    """Merge what the shards of a run left in a folder, so that it is as if one run had made everything.

    A merge that was cut short is finished by the next.

    Returns:
        The report of all, which also stands in `OUT/run.json`.

    Args:
        folder: the output folder, or its address.

    Raises:
        UsageError: there are no shards, or one has not finished.
        OutputError: the folder cannot be written, or somebody is writing there.
    """
    if not remote.is_remote(folder):
        return _merge(os.path.abspath(folder))
    from unet_batch.files.staging import RemoteFolder

    store = RemoteFolder(remote.normalize(folder))
    with store.session():
        store.fetch()
        return _merge(store.folder, store)


def _merge(folder: str, store: RemoteFolder | None = None) -> RunReport:
    """Merge in a folder, which stands for an address if there is a `store`."""
    name = "" if store is None else store.url
    if not shard_parts(folder):
        raise UsageError(
            f"{name or folder} holds no manifests of shards",
            hint="name the output folder of runs with --shard",
        )
    with claim(folder):
        parts = shard_parts(folder)
        path = os.path.join(folder, run_name(""))
        files = {part: os.path.join(folder, run_name(part)) for part in parts}
        merged = _merge_records(folder, files, is_done=_is_newest(path, files.values()))
        if merged is not None:
            report, failures = merged
            report.output, errors = name or folder, os.path.join(folder, errors_name(""))
            report.tables = tables.write_tables(
                folder,
                report.save,
                tables.known_of(folder),
                os.path.getsize(os.path.join(folder, _MANIFEST)),
                parquet=report.parquet,
                store=store,
            )
            report.notes = (*report.notes, *tables.notes_on(report.tables))
            if failures:
                lines = "".join(json.dumps(dataclasses.asdict(failure)) + "\n" for failure in failures)
                write_atomic(errors, lines.encode("ascii"))
            else:
                remove([errors])
            write_json(path, report.as_dict())
        # From here on run.json is the newest report: a merge that is killed now only has to remove the rest.
        for part in parts:
            remove([os.path.join(folder, errors_name(part)), files[part]])
        remove(os.path.join(folder, f"manifest-{part}.jsonl") for part in parts)
        if merged is not None:
            return merged[0]
        return _read_report(folder, path)


def _merge_records(
    folder: str, files: Mapping[str, str], *, is_done: bool
) -> tuple[RunReport, list[Failure]] | None:
    """Write one manifest, a line for each key, sorted, in memory that does not grow; the others stay for now.

    Args:
        folder: the output folder.
        files: the reports of shards, by part.
        is_done: the reports were merged already.

    Returns:
        The report and failures of all, unless that is done.
    """
    path = os.path.join(folder, _MANIFEST)
    with OrderedRecords(folder) as records:
        merged = None if is_done else _merge_reports(folder, files, records)
        with replacing(path) as temporary, open(temporary, "wb") as file:
            file.writelines(recipe_line(digest, label) for digest, label in sorted(records.recipes.items()))
            file.writelines(records.lines())
            file.flush()
            os.fsync(file.fileno())
    return merged


def _merge_reports(
    folder: str, files: Mapping[str, str], records: OrderedRecords
) -> tuple[RunReport, list[Failure]]:
    """Merge the reports and failures of the shards that ran last; what failed before and still does stays."""
    found = {part: data for part, path in files.items() if (data := reports.load_report(path)) is not None}
    try:
        last = max(found, key=lambda part: os.stat(files[part]).st_mtime_ns, default=max(files))
        count = int(last.rpartition("-")[2])
        group = [f"{number}-of-{count}" for number in range(1, count + 1)]
        missing = [part for part in group if part not in found or found[part]["status"] == "running"]
        if missing:
            raise UsageError(
                f"{folder}: {len(missing)} of {count} shards have not finished: "
                f"{missing[0].replace('-of-', '/')}" + (" and others" if len(missing) > 1 else ""),
                hint="run them, or run once without --shard: that does what is left",
            )
        by_path = {failure.path: failure for part in group for failure in _read_failures(folder, part)}
        report = reports.merge_reports(
            folder, [found[part] for part in group], sorted(by_path.values(), key=_order)
        )
        before = [each for each in _read_failures(folder, "") if each.path not in by_path]
        failed = {failure.path for failure in before}
        done = {
            source
            for record in (records if failed else ())
            if record.identity is not None
            and (source := source_path(record.root, record.identity.source)) in failed
        }
        for failure in before:
            if failure.path not in done and archives.exists(failure.path):
                by_path[failure.path] = failure
                report.failed_before += 1
        if differ(ends_here(folder, count).values()):
            report.notes = (*report.notes, _DIFFER)
        return report, sorted(by_path.values(), key=_order)
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise ManifestError(
            f"{folder}: the report of a shard cannot be read: {error!r}",
            hint="run the shards again: what is done stays done",
        ) from error


def _read_failures(folder: str, part: str) -> list[Failure]:
    with (
        suppress(FileNotFoundError),
        open(os.path.join(folder, errors_name(part)), encoding="ascii") as lines,
    ):
        return [Failure(**json.loads(line)) for line in lines]
    return []


def _order(failure: Failure) -> list[str]:
    return failure.path.split(os.sep)


def _is_newest(path: str, others: Iterable[str]) -> bool:
    """Whether `run.json` is newer than the shards' files: from a later run, or a merge that was cut short."""
    report = reports.load_report(path)
    if report is None or report.get("status") == "sharded":
        return False
    newest = os.stat(path).st_mtime_ns
    return all(os.stat(other).st_mtime_ns <= newest for other in others if os.path.exists(other))


def _read_report(folder: str, path: str) -> RunReport:
    try:
        data = reports.load_report(path) or {}
        failures = [Failure(**values) for values in data["failures"]]
        return reports.merge_reports(folder, [data], failures)
    except (KeyError, TypeError, ValueError) as error:
        raise ManifestError(
            f"{path} cannot be read: {error!r}", hint="run again: what is done stays done"
        ) from error
