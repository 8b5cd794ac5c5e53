"""What the page says of the run as a whole, and of its columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unet_batch.types import ClassTable


def describe_columns(classes: ClassTable) -> list[dict[str, str]]:
    """The columns of the page's table: `name` in values, `label`, `kind` (share or number), `help`."""
    columns = []
    if len(classes.names) == 1 or classes.background is not None:
        columns.append(_column("share", "marked", "share", "share of the picture that is marked"))
    if len(classes.names) > 1:
        drawn = [name for id, name in enumerate(classes.names) if id != classes.background]
        columns.append(_column("largest", "largest class", "share", "share of the class that covers most"))
        columns += [
            _column(f"share {name}", name, "share", f"share of the picture that is {name}") for name in drawn
        ]
    return [
        *columns,
        _column("components", "pieces", "number", "connected regions of the mask"),
        _column("confidence", "confidence", "share", "mean probability of what was decided"),
        _column("entropy", "entropy", "number", "mean entropy in bits"),
        _column("unsure", "unsure", "share", "share of pixels of which the model was not sure"),
        _column("unlike", "unlike training", "number", "above 1: unlike what the model learned from"),
        _column("height", "height", "number", "pixels"),
        _column("width", "width", "number", "pixels"),
    ]


def _column(name: str, label: str, kind: str, help: str) -> dict[str, str]:
    return {"name": name, "label": label, "kind": kind, "help": help}


def describe_run(report: Mapping[str, Any]) -> list[list[str]]:
    """The facts of a run for people: pairs of a label and a text; those that are not known are left out."""
    model, backend = _mapping(report.get("model")), _mapping(report.get("backend"))
    rows = [
        ("Command", str(report.get("command") or "")),
        ("Status", str(report.get("status", ""))),
        ("Started", str(report.get("started", ""))),
        ("Sources", ", ".join(map(str, report.get("sources") or ()))),
        ("Output", str(report.get("output", ""))),
        ("Saved", ", ".join(map(str, report.get("save") or ()))),
        ("Items", _counts(report)),
        ("Time", _pace(report)),
        ("Model", _model(model)),
        ("Terms", str(model.get("terms") or "")),
        ("Backend", _backend(backend)),
        ("Versions", _pairs({"unet-batch": report.get("unet_batch"), **_mapping(report.get("versions"))})),
        *(("Note", str(note)) for note in report.get("notes") or ()),
        *(("Note", _note(_mapping(note))) for note in report.get("file_notes") or ()),
    ]
    return [[label, text] for label, text in rows if text]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _counts(report: Mapping[str, Any]) -> str:
    words = {
        "found": "found",
        "done": "done",
        "skipped": "done before",
        "failed": "failed",
        "failed_before": "failed before",
        "retried": "read again",
        "frames": "frames",
    }
    return " · ".join(
        f"{report[name]:,} {word}"
        for name, word in words.items()
        if isinstance(report.get(name), int) and report[name]
    )


def _pace(report: Mapping[str, Any]) -> str:
    seconds, rate = report.get("seconds"), report.get("images_per_second")
    parts = [f"{seconds:,.1f} s"] if isinstance(seconds, (int, float)) and seconds else []
    if parts and isinstance(rate, (int, float)) and rate:
        parts.append(f"{rate:,.1f} pictures/s")
    if parts and report.get("bottleneck"):
        parts.append(f"slowest stage: {report['bottleneck']}")
    return " · ".join(parts)


def _model(model: Mapping[str, Any]) -> str:
    parts = [str(model.get("name") or "")]
    if isinstance(classes := model.get("classes"), list):
        parts.append("classes: " + ", ".join(map(str, classes)))
    if sha256 := model.get("sha256"):
        parts.append(f"sha256 {str(sha256)[:16]}")
    parts += [_model(_mapping(member)) for member in model.get("members") or ()]
    return " · ".join(part for part in parts if part)


def _backend(backend: Mapping[str, Any]) -> str:
    shown = [str(backend[name]) for name in ("name", "precision", "device") if backend.get(name)]
    return " · ".join(shown) + (f" ({backend['reason']})" if backend.get("reason") else "")


def _pairs(values: Mapping[str, Any]) -> str:
    return " · ".join(f"{name} {value}" for name, value in values.items() if value)


def _note(note: Mapping[str, Any]) -> str:
    count = note.get("files", 0)
    return f"{count:,} {'file' if count == 1 else 'files'}: {note.get('note', '')}"
