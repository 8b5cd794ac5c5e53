"""Write into the bundled models what they have seen; the bytes of the weights stay as they are.

    python -m scripts.set_domains [--work DIR] [--data DIR] [--judge]

The pictures are those of `scripts/train_models.py`, without those that show no car; the limit is taken from
those that judged the recipes: four cars of the studio and every tenth street photo, and of `classic`, which
had no others, every second photo of the cars kept out. With `--judge` nothing is written: it prints how many
pictures of each kind are beyond the limit. A file that says the same already is left alone; any other gets
another sha256, so runs with it begin anew and its engines are built again.
"""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import asdict
from pathlib import Path

import numpy as np

from scripts import carvana
from scripts.set_terms import with_values
from scripts.training_sets import LAST, cars_anywhere
from unet_batch.datasets.find import find_dataset
from unet_batch.files.atomic import write_atomic
from unet_batch.media import domain, geometry, images
from unet_batch.model import checkpoint, zoo
from unet_batch.types import Domain, Size


def seen_by_classic(_: Path, data: Path, size: Size) -> Domain | None:
    """Cars in one studio."""
    training, held_out = carvana.split(carvana.photos(data))
    trained, limits = ([describe(photo.image, size) for photo in part] for part in (training, held_out[::2]))
    return domain.learn(trained, limits)


def seen_anywhere(work: Path, data: Path, size: Size) -> Domain | None:
    """Cars in streets, a studio, drives and drawings."""
    folders = cars_anywhere(work, data)
    lists = [set((folders[0].parent / f"{name}.txt").read_text().split()) for name in ("train", "val")]
    parts: tuple[list[domain.Figures], list[domain.Figures]] = ([], [])
    for folder in folders:
        dataset = find_dataset(str(folder))
        pairs = {f"{folder.name}/{Path(pair.image).stem}": pair for pair in dataset.pairs}
        print(folder.name, len(pairs), flush=True)
        for members, part in zip(lists, parts, strict=True):
            part += [
                describe(Path(pair.image), size)
                for name, pair in sorted(pairs.items())
                if name in members and (dataset.read_mask(pair) == 1).any()
            ]
    return domain.learn(*parts)


def describe(path: Path, size: Size) -> domain.Figures:
    """The figures of a file, as a run shows it to a network."""
    picture = images.read(str(path), at_least=(2 * size[0], 2 * size[1]))
    placement = geometry.place(picture.size, size)
    tensor = geometry.to_network(picture.pixels, placement)
    return domain.describe(geometry.content_of(tensor, placement))


def kinds(data: Path) -> dict[str, list[Path]]:
    """Pictures of each kind that no bundled model has learned from."""
    _, held_out = carvana.split(carvana.photos(data))
    streets = sorted((data / "cars_wild" / "images").iterdir())
    drives = sorted((data / "camvid" / "images").iterdir())
    found = {
        "studio, kept cars that set no limit": [photo.image for photo in held_out[1::2]],
        "studio, kept cars": [photo.image for photo in held_out],
        "streets, test": [path for path in streets if path.stem.startswith("test_")],
        "camvid, last of each drive": [path for path in drives if path.stem.startswith(LAST)],
        "camvid": drives,
    }
    for name in ("dsb2018", "isbi2012", "lungs", "satellite", "people"):
        found[name] = sorted((data / name / "images").iterdir())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("work"))
    parser.add_argument("--data", type=Path, default=carvana.data_folder())
    parser.add_argument("--judge", action="store_true", help="print how many pictures are beyond the limits")
    options = parser.parse_args()
    if options.judge:
        judge(kinds(options.data))
        return
    for name in zoo.BUNDLED:
        path = Path(zoo.resolve(name))
        size = checkpoint.identify(str(path)).spec.input_size
        find = seen_by_classic if name == "classic" else seen_anywhere
        seen = find(options.work, options.data, size)
        assert seen is not None
        before = path.read_bytes()
        after = with_values(before, domain=asdict(seen))
        if after != before:
            write_atomic(str(path), after)
        shas = (hashlib.sha256(data).hexdigest()[:12] for data in (before, after))
        print(f"{name}: {seen.pictures} pictures, limit by {seen.validated}: sha256 {' -> '.join(shas)}")


def judge(found: dict[str, list[Path]]) -> None:
    """Print the shares beyond the limit as a table in Markdown."""
    models = {name: checkpoint.identify(zoo.resolve(name)).spec for name in zoo.BUNDLED}
    print(f"| | pictures | {' | '.join(f'`{name}`' for name in models)} |")
    print("|---|---|" + "---|" * len(models))
    for kind, paths in found.items():
        cells = []
        for spec in models.values():
            assert spec.domain is not None
            far = [domain.distance(spec.domain, describe(path, spec.input_size)) > 1 for path in paths]
            cells.append(f"{100 * np.mean(far):.1f} %")
        print(f"| {kind} | {len(paths)} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
