"""The tables of a report. What was not measured is a dash, never a number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

Json = dict[str, Any]
Row = Sequence[str]


def number(value: Any, digits: int = 0) -> str:
    """For people; a dash for what is not a number."""
    return "-" if not isinstance(value, (int, float)) or isinstance(value, bool) else f"{value:,.{digits}f}"


def _spread(value: Any, digits: int = 0) -> str:
    if not isinstance(value, dict) or "median" not in value:
        return "-"
    median, least, most = (number(value[key], digits) for key in ("median", "min", "max"))
    return f"{median} ({least} to {most})"


def _percent(value: Any, digits: int = 1) -> str:
    return "-" if number(value) == "-" else f"{100 * value:.{digits}f} %"


def _mib(value: Any) -> str:
    return "-" if number(value) == "-" else f"{value / 2**20:,.1f} MiB"


def _enough(value: Any, least: float) -> str:
    """A share, bold where it is less than was hoped for."""
    return _percent(value) if number(value) == "-" or value >= least else f"**{_percent(value)}**"


def _yes(value: Any) -> str:
    return {True: "yes", False: "**no**"}.get(value, "-")


def cell(text: Any) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")[:300]


def tests(section: Json) -> Iterator[Row]:
    data = section["data"]
    if "passed" in data:
        yield (
            f"{data['passed']} passed, {len(data['failed'])} failed, {data['skipped']} skipped"
            + "".join(f"; failed: `{name}`" for name in data["failed"]),
        )


def engines(section: Json) -> Iterator[Row]:
    if section["data"].get("engines"):
        yield (
            "builder",
            "model",
            "batch",
            "level",
            "build s",
            "plan",
            "fp16 share",
            "inspector",
            "Dice on the GPU, worst",
            "verified",
            "notes",
        )
    for entry in section["data"].get("engines", []):
        name = f"{section['name'].split()[1]} {section['data']['version']}"
        batch = ",".join(map(str, entry["batch"]))
        level = number(entry["level"])
        if "failed" in entry:
            yield (name, entry["model"], batch, level, *["-"] * 6, f"**failed**: {entry['failed']}")
            continue
        shares = ", ".join(f"{share['source']} {_percent(share['body'])}" for share in entry["shares"])
        runs = [
            parity
            for ran, each in entry["proofs"].items()
            if not ran.startswith("onnx")
            for parity in each.values()
        ]
        seen = entry.get("inspector", {})
        yield (
            name,
            entry["model"],
            batch,
            level,
            number(entry["compile_seconds"], 1) + (" (was there)" if entry["was_there"] else ""),
            _mib(entry["plan_bytes"]),
            shares or "-",
            f"{_percent(seen.get('share_of_named'))} of {number(seen.get('named'))}/{number(seen.get('of'))}",
            number(min((parity["dice"] for parity in runs), default=None), 5),
            _yes(entry["verified_on_gpu"]),
            "; ".join(entry["notes"]) or "-",
        )


def buffers(section: Json) -> Iterator[Row]:
    if section["data"].get("entries"):
        yield (
            "builder",
            "model",
            "batch",
            "buffers",
            "graphs",
            "launched",
            "Dice",
            "ragged",
            "3 threads",
            "digest",
            "notes",
        )
    for entry in section["data"].get("entries", []):
        if "parity" in entry:
            yield (
                section["name"].split()[1],
                entry["model"],
                number(entry["batch"]),
                entry["provider"],
                "on" if entry["graphs"] else "off",
                number(entry["graph_launches"]),
                number(entry["parity"]["dice"], 5),
                _yes(all(entry["ragged"].values())),
                _yes(entry["different_in_threads"] == 0),
                entry["digest"][:8],
                "; ".join(entry["notes"]) or "-",
            )


def speed(section: Json) -> Iterator[Row]:
    if section["data"].get("entries"):
        yield (
            "backend",
            "model",
            "batch",
            "what",
            "images/s, median (range)",
            "ms a batch",
            "TFLOP/s",
            "floor: images/s",
            "of the floor",
            "of the network alone",
            "clock",
        )
    for entry in section["data"].get("entries", []):
        compiled = f", compiled in {entry['compile_seconds']:.0f} s" if "compile_seconds" in entry else ""
        ways = [(f"engine, {way}{compiled}", found) for way, found in entry.get("engine", {}).items()]
        ways += [
            (f"with copies, {way}, {found['threads']} threads", found)
            for way, found in entry["pipeline"].items()
        ]
        for way, found in ways:
            yield (
                entry["backend"],
                entry["model"],
                number(entry["batch"]),
                way,
                _spread(found.get("images_per_s")),
                _spread(found.get("ms_per_batch"), 3),
                number(found.get("tflops"), 1),
                number(found.get("floor_images_per_s")),
                _percent(found.get("share_of_floor")),
                _enough(found.get("share_of_engine"), 0.95),
                found.get("clock") or found.get("reason", "-"),
            )


def runs(section: Json) -> Iterator[Row]:
    data = section["data"]
    if data.get("entries"):
        yield (
            "model",
            "backend",
            "items",
            "pictures in",
            "images/s, median (range)",
            "the slowest stage alone",
            "bottleneck",
            "stages: busy s / threads",
            "CPU s",
        )
    for entry in data.get("entries", []):
        stages = ", ".join(
            f"{stage['name']} {stage['busy']:.2f}/{stage['workers']}" for stage in entry["stages"]
        )
        yield (
            data["model"],
            f"{entry['backend']} {entry['precision']}, batch {entry['batch']}",
            number(data["items"]),
            "processes" if entry["isolate"] else "threads",
            _spread(entry["images_per_s"]),
            number(entry["slowest_images_per_s"]),
            entry["bottleneck"],
            stages,
            number(sum(stage["cpu"] for stage in entry["stages"]), 2),
        )
    if "usual_loop" in data:
        loop = data["usual_loop"]
        speed = _spread(loop["images_per_s"])
        yield (
            data["model"],
            f"usual loop, torch half, batch {loop['batch']}",
            number(loop["items"]),
            "one thread",
            speed,
            "-",
            "-",
            "-",
            "-",
        )


def masks(section: Json) -> Iterator[Row]:
    if section["data"].get("masks"):
        yield (
            "model",
            "backend",
            "photos",
            "Dice with PyTorch's in float32 on the CPU",
            "pixels that differ",
        )
    for entry in section["data"].get("masks", []):
        photos = f"{entry['photos']} {'of Carvana' if entry['real'] else 'drawn'}"
        dice, pixels = number(entry["dice"], 5), _percent(entry["pixels"], 3)
        yield (entry["model"], entry["backend"], photos, dice, pixels)


def photo_decoders(section: Json) -> Iterator[Row]:
    if section["data"].get("decoders"):
        yield (
            "decoder",
            "photos/s, median (range)",
            "largest difference",
            "mean",
            "off by more than 1",
            "remark",
        )
    for entry in section["data"].get("decoders", []):
        yield (
            entry["decoder"],
            _spread(entry.get("photos_per_s")),
            number(entry.get("largest")),
            number(entry.get("mean"), 3),
            _percent(entry.get("beyond_one"), 3),
            _remark(entry),
        )


def damaged(section: Json) -> Iterator[Row]:
    if section["data"].get("damaged"):
        yield ("decoder", "file", "ours", "theirs")
    for entry in section["data"].get("damaged", []):
        yield (entry["decoder"], entry["file"], entry["ours"], entry["theirs"])


def memory(section: Json) -> Iterator[Row]:
    data = section["data"]
    if "points" in data:
        yield (
            "section",
            "model",
            "batches",
            "resident",
            "GPU free",
            "resident since first",
            "GPU free since first",
        )
        first = data["points"][0]
        for point in data["points"]:
            grown = None if point["resident"] is None else point["resident"] - first["resident"]
            yield (
                section["name"],
                data["model"],
                number(point["batches"]),
                _mib(point["resident"]),
                _mib(point["gpu_free"]),
                _mib(grown),
                _mib(point["gpu_free"] - first["gpu_free"]),
            )
        closed = data.get("free_after_closing", [])
        if closed:
            last = ("-", _mib(closed[-1]), "-", _mib(closed[-1] - closed[0]))
            yield (section["name"], data["model"], f"opened and closed {len(closed)} times", *last)


def starved(section: Json) -> Iterator[Row]:
    data = section["data"]
    if "starved" in data:
        yield ("section", "model", "free, of what it needs", "batch", "Dice", "what it said")
        for entry in (
            data["alone"] | {"share": None},
            *data["starved"],
            data.get("after", {}) | {"share": "after"},
        ):
            said = "; ".join(entry.get("notes", [])) or "-"
            free = {None: "everything", "after": "everything again"}.get(entry["share"]) or _percent(
                entry["share"], 0
            )
            batch = f"{number(entry.get('batch'))} of {number(entry.get('asked'))}"
            if "refused" in entry:
                said = f"{entry['kind']}: {entry['refused']}"
            yield (section["name"], data["model"], free, batch, number(entry.get("dice"), 5), said)


def _remark(entry: Json) -> str:
    return str(entry.get("reason") or "-")


def training(section: Json) -> Iterator[Row]:
    data = section["data"]
    if "history" not in data:
        return
    yield (
        "precision",
        "widths",
        "batch",
        "epochs x steps",
        "images/s, median (range)",
        "loss, first to last",
        "Dice",
        "scale",
        "steps that overflowed",
        "peak memory",
        "estimated",
    )
    first, last = data["history"][0], data["history"][-1]
    yield (
        data["precision"],
        ", ".join(map(str, data["widths"])),
        number(data["batch"]),
        f"{data['epochs']} x {data['steps']}",
        _spread(data["images_per_s"]),
        f"{number(first['loss'], 4)} to {number(last['loss'], 4)}",
        number(last["val_dice"], 4),
        number(data["scale"]),
        number(data["skipped_steps"]),
        _mib(data["peak_bytes"]),
        _mib(data["estimated_bytes"]),
    )


def equal(section: Json) -> Iterator[Row]:
    if section["data"].get("equal"):
        yield (
            "section",
            "pictures",
            "what",
            "tensors",
            "equal to the bit",
            "what differs",
            "what PyTorch says",
        )
    for entry in section["data"].get("equal", []):
        yield (
            section["name"],
            entry["data"],
            entry["what"],
            number(entry["tensors"]),
            _yes(not entry["differing"]),
            ", ".join(entry["differing"][:3]) or "-",
            "; ".join(entry["notes"]) or "-",
        )


def processes(section: Json) -> Iterator[Row]:
    data = section["data"]
    if "one" in data:
        yield (
            "how",
            "GPUs",
            "BatchNorm",
            "batch",
            "losses of one process",
            "losses of two",
            "furthest apart",
        )
        one, two = (", ".join(number(loss, 4) for loss in data.get(key, ())) or "-" for key in ("one", "two"))
        apart = _percent(data.get("apart"), 2)
        yield (data["how"], number(data["gpus"]), data["batchnorm"], number(data["batch"]), one, two, apart)


def loading(section: Json) -> Iterator[Row]:
    if section["data"].get("loading"):
        yield (
            "batch",
            "precision",
            "augment",
            "one batch: images/s",
            "remembered",
            "decoded",
            "remembered, times a step",
            "decoded",
        )
    for entry in section["data"].get("loading", []):
        yield (
            number(entry["batch"]),
            entry["precision"],
            entry["augment"],
            _spread(entry.get("fixed")) if "fixed" in entry else _remark(entry),
            _spread(entry.get("remembered")),
            _spread(entry.get("decoded")),
            number(entry.get("remembered_times"), 3),
            number(entry.get("decoded_times"), 3),
        )


def decoders(section: Json) -> Iterator[Row]:
    data = section["data"]
    if data.get("decoders"):
        yield (
            "decoder",
            "frames",
            "frames/s, median (range)",
            "stored as",
            "compared",
            "mean, largest difference",
            "remark",
        )
    for entry in data.get("decoders", []):
        compared = data.get("compared", {}) if entry["decoder"] != "processor" else {}
        apart = f"{number(compared['mean'], 3)}, {number(compared['largest'])}" if compared else "-"
        yield (
            entry["decoder"],
            number(entry.get("frames")),
            _spread(entry.get("frames_per_s")),
            entry.get("format", "-"),
            number(compared.get("frames")),
            apart,
            _remark(entry),
        )


def encoders(section: Json) -> Iterator[Row]:
    if section["data"].get("encoders"):
        yield (
            "encoder",
            "frames",
            "frames/s, median (range)",
            "size",
            "came back",
            "mean difference",
            "remark",
        )
    for entry in section["data"].get("encoders", []):
        yield (
            entry["encoder"],
            number(entry.get("frames")),
            _spread(entry.get("frames_per_s")),
            _mib(entry.get("bytes")),
            number(entry.get("read_back")),
            number(entry.get("mean"), 2),
            _remark(entry),
        )


def clips(section: Json) -> Iterator[Row]:
    data = section["data"]
    if data.get("ways"):
        yield (
            "backend",
            "decoder",
            "codec",
            "frames",
            "frames/s, median (range)",
            "wall/floor",
            "bottleneck",
            "stages: busy",
            "remark",
        )
    for entry in data.get("ways", []):
        stages = ", ".join(
            f"{stage['name']} {_percent(stage['share'], 0)} of {stage['workers']}"
            for stage in entry.get("stages", [])
        )
        yield (
            f"{data['backend']} {data['precision']}, batch {data['batch']}",
            entry["decoder"],
            entry["codec"],
            number(entry.get("frames")),
            _spread(entry.get("frames_per_s")),
            _spread(entry.get("wall_over_floor"), 2),
            entry.get("bottleneck", "-"),
            stages or "-",
            "; ".join([*entry.get("problems", []), *entry.get("notes", [])]) or _remark(entry),
        )
