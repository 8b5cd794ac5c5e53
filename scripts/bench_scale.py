"""Measure what more items cost: pictures a second, memory, a run with nothing to do, a million names.

    python -m scripts.bench_scale rate [--counts 100,1000,10000,100000] [--rounds 3]
    python -m scripts.bench_scale resume [--counts 100000]
    python -m scripts.bench_scale names [--counts 1000000] [--shards 25]
    python -m scripts.bench_scale merge [--counts 1000000] [--shards 25]

`rate` segments drawn pictures of 64x96, by a backend that costs nothing, so that all that takes time is
ours; each number of them in a process of its own, in alternating rounds. `resume` plans a folder of so many
files again, where there is nothing to do: it lists them, reads the manifest, and looks at each source and
output; without the start of Python and of the model, which one file takes as well. `names` plans a bucket
that exists as names only, a thousand in each folder: all of it, and what one shard of so many lists, plans,
and reads of a manifest in which everything is done. `merge` joins the manifests of shards that hold so many
lines. Exits with 1 where a limit is passed: 3 s for 100,000 files with nothing to do, 30 s and 500 MB for a
million names, in processor time, which other programs on the machine hardly disturb.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fsspec import register_implementation
from fsspec.spec import AbstractFileSystem

FOLDER = 1000
"""Names in a folder of the bucket."""
MAX_RESUME_SECONDS, MAX_PLAN_SECONDS, MAX_PLAN_BYTES = 3.0, 30.0, 500e6
"""For 100,000 files, and for a million names."""


class Names(AbstractFileSystem):  # type: ignore[misc]
    """A bucket that exists as names only, `names://bucket/COUNT/00000/img-00000000.jpg`.

    Attributes:
        told: how many names have been told, by all instances.
    """

    protocol = "names"
    cachable = False
    told = 0

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        steps = self._strip_protocol(path).split("/")
        if len(steps) < 4:
            return {"name": "/".join(steps), "type": "directory", "size": 0}
        return self._file(steps[1], int(steps[3][4:-4]))

    def ls(self, path: str, detail: bool = True, **options: Any) -> list[dict[str, Any]]:
        bucket, *steps = self._strip_protocol(path).rstrip("/").split("/")
        if not steps or bucket != "bucket":
            raise FileNotFoundError(path)
        count = int(steps[0])
        if len(steps) == 1:
            folders = range(-(-count // FOLDER))
            found = [
                {"name": f"bucket/{count}/{folder:05}", "type": "directory", "size": 0} for folder in folders
            ]
        else:
            first = int(steps[1]) * FOLDER
            found = [self._file(steps[0], number) for number in range(first, min(count, first + FOLDER))]
        Names.told += len(found)
        return found

    def find(self, path: str, maxdepth: int | None = None, withdirs: bool = False, **options: Any) -> Any:
        found = self.ls(path)
        if found and found[0]["type"] == "directory":
            return {name: info for each in found for name, info in self.find(each["name"]).items()}
        return {info["name"]: info for info in found}

    @staticmethod
    def _file(count: str, number: int) -> dict[str, Any]:
        name = f"bucket/{count}/{number // FOLDER:05}/img-{number:08}.jpg"
        return {"name": name, "type": "file", "size": 100_000 + number % 1000, "ETag": f'"{number:032x}"'}


def memory() -> float:
    """Resident bytes of this process now."""
    return float(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak() -> float:
    """The most resident bytes that this process has had."""
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * 1024


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """What a call returns, its seconds, and its seconds of processor time."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - wall, time.process_time() - cpu


# Each of these runs in a process of its own, and returns what it has measured.


def measure_rate(folder: str, out: str) -> dict[str, float]:
    """Segment a folder from nothing, after a few pictures that warm up."""
    from unet_batch.inference.segmenter import Segmenter
    from unet_batch.run.execute import execute
    from unet_batch.run.options import RunOptions
    from unet_batch.run.plan import prepare
    from unet_batch.testing import FakeBackend, fake_spec

    with Segmenter(FakeBackend(fake_spec((64, 96)), _nothing, batch_size=32)) as segmenter:
        execute(prepare(RunOptions((os.path.join(folder, "00000"),), out + "-warm")), segmenter)
        before = memory()
        plan, _, _ = timed(lambda: prepare(RunOptions((folder,), out)))
        report, wall, cpu = timed(lambda: execute(plan, segmenter))
    assert report.done == len(plan.items), report.failures
    return {
        "rate": report.done / wall,
        "ms": 1e3 * cpu / report.done,
        "growth_mb": (memory() - before) / 1e6,
        "peak_mb": peak() / 1e6,
    }


def _nothing(pictures: Any) -> Any:
    return pictures[..., 0]


def measure_resume(folder: str, out: str) -> dict[str, float]:
    """Find out that there is nothing to do."""
    from unet_batch.run.options import RunOptions
    from unet_batch.run.plan import prepare, resume

    plan, prepare_wall, prepare_cpu = timed(lambda: prepare(RunOptions((folder,), out)))
    plan, wall, cpu = timed(lambda: resume(plan, recipe_in(out)))
    assert not plan.todo, plan.states
    return {
        "seconds": wall + prepare_wall,
        "cpu_seconds": cpu + prepare_cpu,
        "prepare_cpu_seconds": prepare_cpu,
        "peak_mb": peak() / 1e6,
    }


def recipe_in(out: str) -> Any:
    """The recipe that the manifest of a folder begins with."""
    from unet_batch.run.manifest import manifest_names
    from unet_batch.run.records import OutputRecipe

    with open(os.path.join(out, manifest_names(out)[0]), "rb") as file:
        line = json.loads(file.readline())

    class Recorded(OutputRecipe):
        digest = line["recipe"]

    return Recorded({}, line["made_with"])


def measure_names(count: int, out: str, shard: str) -> dict[str, float]:
    """Plan a bucket of names, or a shard's part of it."""
    from unet_batch.run.options import RunOptions
    from unet_batch.run.plan import prepare, resume
    from unet_batch.run.records import OutputRecipe
    from unet_batch.run.shard import Shard

    register_implementation("names", Names)
    options = RunOptions((f"names://bucket/{count}/",), out, shard=Shard.parse(shard, {}) if shard else None)
    plan, wall, cpu = timed(lambda: prepare(options))
    told = Names.told
    recipe = recipe_in(out) if os.path.isdir(out) else OutputRecipe({}, "none")
    plan, resume_wall, resume_cpu = timed(lambda: resume(plan, recipe))
    return {
        "items": len(plan.items),
        "todo": len(plan.todo),
        "told": told,
        "seconds": wall + resume_wall,
        "cpu_seconds": cpu + resume_cpu,
        "resume_cpu_seconds": resume_cpu,
        "peak_mb": peak() / 1e6,
    }


def write_manifests(count: int, out: str, shards: int) -> None:
    """What shards would have recorded that have done all of a bucket of names."""
    from unet_batch.run.manifest import Manifest, Share
    from unet_batch.run.records import Identity, OutputRecipe, Record
    from unet_batch.run.shard import Shard

    os.makedirs(out)
    recipe = OutputRecipe({"names": True}, "none")
    folders: dict[int, list[int]] = {}
    for folder in range(-(-count // FOLDER)):
        number = next(n for n in range(1, shards + 1) if Shard(n, shards).takes_folder(f"{folder:05}"))
        folders.setdefault(number, []).append(folder)
    parts = [Shard(number, shards).part for number in range(1, shards + 1)]
    for number, part in enumerate(parts, 1):
        manifest = Manifest(out, part, depth=1, share=Share(others=parts))
        manifest.sync_seconds = 1e9
        with manifest.writing(recipe):
            for folder in folders.get(number, ()):
                manifest.record(
                    *(
                        Record(
                            f"{folder:05}/img-{item:08}",
                            "done",
                            Identity(f"{folder:05}/img-{item:08}.jpg", 100_000 + item % 1000, item),
                            recipe.digest,
                            {"mask": ((f"masks/{folder:05}/img-{item:08}.png", 1234),)},
                            "fake fp32",
                            f"names://bucket/{count}",
                        )
                        for item in range(folder * FOLDER, min(count, (folder + 1) * FOLDER))
                    )
                )


def measure_merge(out: str) -> dict[str, float]:
    """Join the manifests of shards."""
    from unet_batch.run.merge import _merge_records

    _, wall, cpu = timed(lambda: _merge_records(out, {}, is_done=True))
    return {"seconds": wall, "cpu_seconds": cpu, "peak_mb": peak() / 1e6}


def alone(function: str, *arguments: str | int) -> dict[str, float]:
    """Call one of these in a process of its own."""
    call = f"import json, scripts.bench_scale as b; print(json.dumps(b.{function}(*{arguments!r})))"
    done = subprocess.run([sys.executable, "-c", call], stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def draw(folder: str, count: int) -> None:
    """Put pictures into folders, a thousand in each: links to 32 that are drawn."""
    from unet_batch.scenes import write_samples

    drawn = f"{folder}.drawn"
    pictures = [os.fspath(path) for path in write_samples(drawn, 32, (64, 96), 5, with_masks=False)]
    for number in range(count):
        below = os.path.join(folder, f"{number // FOLDER:05}")
        if number % FOLDER == 0:
            os.makedirs(below)
        source = pictures[number % len(pictures)]
        os.link(source, os.path.join(below, f"{number:06}{os.path.splitext(source)[1]}"))


def run_rate(counts: list[int], rounds: int, top: str) -> bool:
    """Print pictures a second for each number of them."""
    folders = {count: os.path.join(top, str(count)) for count in counts}
    for count, folder in folders.items():
        draw(folder, count)
    found: dict[int, list[dict[str, float]]] = {count: [] for count in counts}
    for number in range(rounds):
        for count, folder in folders.items():
            found[count].append(alone("measure_rate", folder, os.path.join(top, f"out-{count}-{number}")))
    print("| pictures | pictures/s | ms of processor time a picture | memory that grew, MB | peak, MB |")
    print("|---:|---:|---:|---:|---:|")
    for count, each in found.items():
        rate, ms, growth, most = (
            statistics.median(one[name] for one in each) for name in ("rate", "ms", "growth_mb", "peak_mb")
        )
        print(f"| {count:,} | {rate:,.0f} | {ms:.3f} | {growth:.1f} | {most:.0f} |", flush=True)
    return True


def run_resume(counts: list[int], top: str) -> bool:
    """Print what a run with nothing to do takes."""
    good = True
    for count in counts:
        folder, out = os.path.join(top, str(count)), os.path.join(top, f"out-{count}")
        draw(folder, count)
        alone("measure_rate", folder, out)
        found = alone("measure_resume", folder, out)
        good = good and found["cpu_seconds"] <= MAX_RESUME_SECONDS * max(1.0, count / 100_000)
        print(
            f"{count:,} files, nothing to do: {found['cpu_seconds']:.2f} s of processor time "
            f"({found['seconds']:.2f} s by the clock), {found['prepare_cpu_seconds']:.2f} of it to find "
            f"them; peak {found['peak_mb']:.0f} MB",
            flush=True,
        )
    return good


def run_names(counts: list[int], shards: int, top: str) -> bool:
    """Print what a bucket of names takes."""
    good = True
    for count in counts:
        nothing = os.path.join(top, "nothing")
        whole = alone("measure_names", count, nothing, "")
        limit = max(1.0, count / 1e6)
        good = good and whole["cpu_seconds"] <= MAX_PLAN_SECONDS * limit
        good = good and whole["peak_mb"] <= MAX_PLAN_BYTES / 1e6 * limit
        done = os.path.join(top, f"done-{count}")
        write_manifests(count, done, shards)
        for what, found in (
            ("all", whole),
            (f"shard 1/{shards}", alone("measure_names", count, nothing, f"1/{shards}")),
            (f"shard 1/{shards}, recorded", alone("measure_names", count, done, f"1/{shards}")),
        ):
            print(
                f"{count:,} names, {what}: {found['told']:,.0f} listed, {found['items']:,.0f} items; "
                f"{found['cpu_seconds']:.2f} s of processor time ({found['seconds']:.2f} s by the clock), "
                f"{found['resume_cpu_seconds']:.2f} of it to compare them; peak {found['peak_mb']:.0f} MB",
                flush=True,
            )
    return good


def run_merge(counts: list[int], shards: int, top: str) -> bool:
    """Print what joining manifests takes."""
    for count in counts:
        out = os.path.join(top, f"merge-{count}")
        write_manifests(count, out, shards)
        size = sum(path.stat().st_size for path in Path(out).iterdir()) / 1e6
        found = alone("measure_merge", out)
        print(
            f"{count:,} records of {shards} shards ({size:,.0f} MB) joined: {found['cpu_seconds']:.1f} s of "
            f"processor time ({found['seconds']:.1f} s by the clock); peak {found['peak_mb']:.0f} MB",
            flush=True,
        )
    return True


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("rate", "resume", "names", "merge"))
    parser.add_argument("--counts", help="with commas")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shards", type=int, default=25)
    options = parser.parse_args()
    usual = {"rate": "100,1000,10000,100000", "resume": "100000"}.get(options.what, "1000000")
    counts = [int(count) for count in (options.counts or usual).split(",")]
    with tempfile.TemporaryDirectory() as top:
        good = {
            "rate": lambda: run_rate(counts, options.rounds, top),
            "resume": lambda: run_resume(counts, top),
            "names": lambda: run_names(counts, options.shards, top),
            "merge": lambda: run_merge(counts, options.shards, top),
        }[options.what]()
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
