"""Say where many workers saturate over a bucket of photos: listing, planning, manifest, one process, network.

    python -m scripts.simulate_scale [--photos 10000000] [--folders 40000] [--workers 1,10,100,1000]

Nothing is run: costs that were measured one by one are put together by arithmetic, for three ways to share
the work. `one list`: one process lists, plans, hands out and records, the workers compute. `shards that list
all`: each of as many runs lists and plans everything and reads every manifest, as up to 0.2.0 and where a
tree has few folders. `shards with folders`: each lists, plans and reads what is its own.

Prints, for each, the minutes until the first photo, the minutes of work, what the workers wait for, and the
minutes of a second run that finds nothing to do. What is in none of it: that machines fail, and that a store
slows down who asks too much of one prefix.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from typing import NamedTuple

from unet_batch.run.shard import FOLDERS

COSTS = {
    "request": (0.05, "assumed: seconds until a store answers"),
    "at once": (32, "remote.AHEAD: requests of a process on their way"),
    "page": (0.0049, "s3fs, a page of 10 names: processor seconds; .000038 more for each name beyond"),
    "listed name": (0.000038, "s3fs, a page of 1,000 names: 38 ms of processor time"),
    "planned name": (
        0.000023,
        "bench_scale names: 19.8 to 26 s of processor time for a million, runs differ",
    ),
    "compared name": (
        0.000035,
        "bench_scale names, recorded: 1.6 s for 46,000, reading the manifest included",
    ),
    "record": (0.000024, "Manifest.record, 20,000 records: processor seconds of one"),
    "joined record": (0.0000245, "bench_scale merge: 24.5 s for a million of 25 shards"),
    "record bytes": (276, "bench_scale merge: 276 MB for a million"),
    "end bytes": (65_536, "dealing.ENDS: read of both ends of each other shard's manifest"),
    "photo": (0.01045, "log of 28 November: decode, draw and write 1280x1918, processor seconds"),
    "lock": (0.0005, "assumed: seconds of Python's lock for an item in one process"),
    "photo bytes": (400_000, "Carvana's photos, about; masks are 5 to 15 kB"),
    "network": (1.25e9, "assumed: bytes a second of a worker's network, 10 Gbit/s"),
}
"""Of each cost its value, and where it was measured or that it is assumed."""
CORES = 16
"""Of a worker, beside one GPU, which takes a photo in less time than all of them together decode one."""


class Phases(NamedTuple):
    """What a run takes.

    Attributes:
        start: seconds until the first photo is asked for.
        work: seconds from then on.
        limit: what the workers wait for.
        again: seconds of a second run that finds nothing to do.
        memory: bytes that the largest list of names and records takes in one process.
    """

    start: float
    work: float
    limit: str
    again: float
    memory: float


@dataclass(frozen=True)
class Tree:
    """Photos in folders of one size, and the costs."""

    photos: int
    folders: int

    def cost(self, name: str) -> float:
        return float(COSTS[name][0])

    def listing(self, photos: float, folders: float) -> float:
        """Seconds until so many photos in so many folders are listed: requests overlap, reading does not."""
        pages = folders * max(1.0, math.ceil(photos / max(folders, 1.0) / 1000))
        waits = pages * self.cost("request") / self.cost("at once")
        return max(waits, pages * self.cost("page") + photos * self.cost("listed name"))

    def planning(self, photos: float) -> float:
        """Seconds to name and order so many photos."""
        return photos * self.cost("planned name")

    def reading(self, photos: float) -> float:
        """Seconds to fetch records of so many photos, and to compare them with what is there."""
        fetch = photos * self.cost("record bytes") / self.cost("network")
        return fetch + photos * self.cost("compared name")

    def rate(self) -> tuple[float, str]:
        """Photos a second of one worker, and what keeps it from more."""
        limits = {
            "its cores": CORES / self.cost("photo"),
            "its network": self.cost("network") / self.cost("photo bytes"),
            "its process": 1 / self.cost("lock"),
        }
        name = min(limits, key=lambda each: limits[each])
        return limits[name], name


def largest_share(units: float, workers: int) -> float:
    """Of the shares that a hash gives, the largest, as a multiple of the mean: about so for many units."""
    if workers == 1:
        return 1.0
    mean = units / workers
    return 1.0 + math.sqrt(2 * math.log(workers) / mean)


def one_list(tree: Tree, workers: int) -> Phases:
    """One process lists, plans, hands out and records."""
    rate, limit = tree.rate()
    start = tree.listing(tree.photos, tree.folders) + tree.planning(tree.photos)
    recorded = 1 / tree.cost("record")
    total = min(workers * rate, recorded)
    limit = limit if workers * rate <= recorded else "the one that records"
    memory = tree.photos * (400.0 + 1000.0)
    again = tree.listing(tree.photos, tree.folders) + tree.planning(tree.photos) + tree.reading(tree.photos)
    outputs = tree.listing(tree.photos, tree.folders)
    return Phases(start, tree.photos / total, limit, again + outputs, memory)


def shards_that_list_all(tree: Tree, workers: int) -> Phases:
    """Each run lists and plans everything, and reads every manifest."""
    rate, limit = tree.rate()
    start = tree.listing(tree.photos, tree.folders) + tree.planning(tree.photos)
    share = tree.photos / workers * largest_share(tree.photos, workers)
    lists = 2 * tree.listing(tree.photos, tree.folders)  # of the sources, and of what is there
    again = lists + tree.planning(tree.photos) + tree.reading(tree.photos)
    work = share / rate
    waits = "listing and planning" if start > work else limit
    return Phases(start, work, waits, again, tree.photos * (400.0 + 1000.0))


def shards_with_folders(tree: Tree, workers: int) -> Phases:
    """Each run lists, plans and reads what is its own; as above where there are not enough folders."""
    if tree.folders < FOLDERS * workers or workers == 1:
        return shards_that_list_all(tree, workers)
    rate, limit = tree.rate()
    most = largest_share(tree.folders, workers)
    photos, folders = tree.photos / workers * most, tree.folders / workers * most
    top = tree.listing(tree.folders, 1)  # the names of all folders, which everybody sees
    start = top + tree.listing(photos, folders) + tree.planning(photos)
    ends = 2 * workers * tree.cost("request") / tree.cost("at once")
    ends = max(ends, workers * 2 * tree.cost("end bytes") / tree.cost("network"))
    start += ends
    again = start + top + tree.listing(photos, folders) + tree.reading(photos)
    work = photos / rate
    return Phases(
        start, work, "listing and planning" if start > work else limit, again, photos * (400.0 + 1000.0)
    )


DESIGNS = {
    "one list": one_list,
    "shards that list all": shards_that_list_all,
    "shards with folders": shards_with_folders,
}


def rows(tree: Tree, workers: list[int]) -> list[tuple[str, int, Phases]]:
    """Each design with each number of workers."""
    return [(name, count, design(tree, count)) for name, design in DESIGNS.items() for count in workers]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=int, default=10_000_000)
    parser.add_argument("--folders", type=int, default=40_000)
    parser.add_argument("--workers", default="1,10,100,1000", help="with commas")
    options = parser.parse_args()
    tree = Tree(options.photos, options.folders)
    print("| cost | value | from |\n|---|---:|---|")
    for name, (value, source) in COSTS.items():
        print(f"| {name} | {value:,g} | {source} |")
    print(f"\n{tree.photos:,} photos in {tree.folders:,} folders; a worker: {tree.rate()[0]:,.0f} photos/s\n")
    print("| design | workers | to the first photo, min | work, min | it waits for | again, min | GB |")
    print("|---|---:|---:|---:|---|---:|---:|")
    for name, count, found in rows(tree, [int(count) for count in options.workers.split(",")]):
        print(
            f"| {name} | {count:,} | {found.start / 60:,.1f} | {found.work / 60:,.1f} | {found.limit} | "
            f"{found.again / 60:,.1f} | {found.memory / 1e9:.2f} |"
        )
    joined = tree.photos * tree.cost("joined record") / 60
    print(f"\nJoining the manifests afterwards: {joined:,.1f} min, once, in memory that does not grow.")


if __name__ == "__main__":
    main()
