"""The datasets that the models are trained on, linked together from the photos in the data folder.

Each function gives the folder, or folders, of a dataset, with lists of what trains and what validates beside
it. Splits are made by rules and seeds that are written here, before anything is trained.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from scripts import carvana
from unet_batch.scenes import write_samples

SCENES, SCENE_SEED = 160, 1  # the demo draws with seed 0, the evaluation with 2: no scene is in two sets

CAMVID = (
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
)


def cars(work: Path, data: Path) -> Path:
    """Carvana's photos and drawn scenes in one folder, with the lists of each protocol."""
    folder = work / "cars"
    photos = carvana.photos(data)
    training, held_out = carvana.split(photos)
    scenes = [Path(path) for path in write_samples(str(work / "scenes"), SCENES, seed=SCENE_SEED)]
    link(folder, [(photo.image, photo.mask) for photo in photos])
    link(
        folder,
        [(path, Path(str(path).replace("/photos/", "/masks/")).with_suffix(".png")) for path in scenes],
    )
    (folder / "classes.toml").write_text('[[class]]\nname = "car"\n')
    by_car = {photo.image.stem for photo in held_out}
    at_random = {photo.image.stem for photo in random.Random(48).sample(photos, 48)}
    names = {photo.image.stem for photo in photos}
    drawn = {path.stem for path in scenes}
    lists = {
        "by-car": names - by_car | drawn,
        "by-car-val": by_car,
        "random48": names - at_random,
        "random48-val": at_random,
        # For a first phase that both protocols may go on from.
        "both": names - by_car - at_random | drawn,
    }
    assert {photo.car for photo in training}.isdisjoint(photo.car for photo in held_out)
    for name, members in lists.items():
        (folder / f"{name}.txt").write_text("".join(f"{member}\n" for member in sorted(members)))
    return folder


CAR, CAR_VOID = CAMVID.index("car"), len(CAMVID)
DRIVES = "^(0001TP_...|......_f?..)"  # what stands before the frame's number in CamVid's names
LAST = ("0001TP_008", "0006R0_f03", "0016E5_07", "0016E5_08")  # the last quarter of each of CamVid's drives


def cars_anywhere(work: Path, data: Path) -> list[Path]:
    """Five datasets of cars and of none, and what is kept out of each.

    Kept out of training and validation: twelve cars of the studio, `test_*` of the streets, the last quarter
    of each drive. To judge recipes by, four more cars and every tenth of the other street photos validate.

    Returns:
        The datasets; beside them lie `train.txt` and `val.txt`.
    """
    root = work / "anywhere"
    root.mkdir(parents=True, exist_ok=True)
    lists: dict[str, list[str]] = {"train": [], "val": []}
    # Streets, yards and showrooms.
    wild = sorted((data / "cars_wild" / "images").iterdir())
    known = [path for path in wild if path.stem.startswith("train_")]
    link(root / "street", [(path, data / "cars_wild" / "masks" / f"{path.stem}.png") for path in known])
    for number, path in enumerate(known):
        lists["train" if number % 10 else "val"].append(f"street/{path.stem}")
    # A turntable in one studio.
    training, _ = carvana.split(carvana.photos(data))
    judged = set(random.Random(8).sample(sorted({photo.car for photo in training}), 4))
    link(root / "studio", [(photo.image, photo.mask) for photo in training])
    for photo in training:
        lists["val" if photo.car in judged else "train"].append(f"studio/{photo.image.stem}")
    # Traffic from a driver's seat, all cars of it.
    drives = sorted((data / "camvid" / "images").iterdir())
    before = [path for path in drives if not path.stem.startswith(LAST)]
    for folder in ("images", "masks"):
        (root / "driving" / folder).mkdir(parents=True, exist_ok=True)
    link(root / "driving", [(path, None) for path in before])
    for path in before:
        ids = read_ids(data / "camvid" / "masks" / f"{path.stem}.png")
        values = np.select([ids == CAR, ids == CAR_VOID], [255, 128], 0).astype(np.uint8)
        cv2.imwrite(str(root / "driving" / "masks" / f"{path.stem}.png"), values)
        lists["train"].append(f"driving/{path.stem}")
    # Drawn ones.
    scenes = [Path(path) for path in write_samples(str(work / "scenes"), SCENES, seed=SCENE_SEED)]
    masks = [Path(str(path).replace("/photos/", "/masks/")).with_suffix(".png") for path in scenes]
    link(root / "drawn", list(zip(scenes, masks, strict=True)))
    lists["train"] += [f"drawn/{path.stem}" for path in scenes]
    # And none at all.
    for folder in ("images", "masks"):
        (root / "none" / folder).mkdir(parents=True, exist_ok=True)
    for path in without_cars(root / "crops", data, is_test=False):
        stem = f"{path.parts[-3]}-{path.stem}"
        cv2.imwrite(str(root / "none" / "masks" / f"{stem}.png"), np.zeros_like(read_grey(str(path))))
        target = root / "none" / "images" / f"{stem}{path.suffix}"
        if not target.is_symlink():
            target.symlink_to(path.resolve())
        lists["train"].append(f"none/{stem}")
    names = ("street", "studio", "driving", "drawn", "none")
    for name in names:
        void = "void = 128\n" if name == "driving" else ""
        white = "id = 255\n" if name in ("driving", "none") else ""
        (root / name / "classes.toml").write_text(f'{void}[[class]]\nname = "car"\n{white}')
    for name, members in lists.items():
        (root / f"{name}.txt").write_text("".join(f"{member}\n" for member in members))
    return [root / name for name in names]


def without_cars(work: Path, data: Path, is_test: bool) -> list[Path]:
    """Pictures without a car: nuclei, membranes, lungs, roads from above, windows of streets.

    For testing a hundred of each kind, or what there is; the others are for training.
    """
    found: list[Path] = []
    for name, tested in (("dsb2018", 100), ("isbi2012", 0), ("lungs", 100), ("satellite", 60)):
        paths = sorted((data / name / "images").iterdir())
        random.Random(3).shuffle(paths)
        found += paths[:tested] if is_test else paths[tested:][:60]
    folder = work / ("camvid-test" if is_test else "camvid") / "images"
    folder.mkdir(parents=True, exist_ok=True)
    place = np.random.default_rng(4)
    streets = sorted((data / "camvid" / "images").iterdir())
    streets = [path for path in streets if path.stem.startswith(LAST) == is_test]
    made = 0
    while made < (100 if is_test else 60):
        path = streets[int(place.integers(len(streets)))]
        side = int(place.integers(160, 300))
        top, left = int(place.integers(360 - side + 1)), int(place.integers(480 - side + 1))
        window = slice(top, top + side), slice(left, left + side)
        ids = read_ids(data / "camvid" / "masks" / f"{path.stem}.png")[window]
        if not np.isin(ids, (CAR, CAR_VOID)).any():
            picture = cv2.imread(str(path))
            assert picture is not None, path
            target = folder / f"{made:03d}-{path.stem}.png"
            cv2.imwrite(str(target), picture[window])
            found.append(target)
            made += 1
    return found


def read_ids(path: Path) -> np.ndarray:
    """A mask of ids that is known to be there, uint8 (H, W)."""
    with Image.open(path) as file:
        return np.asarray(file)


def link(folder: Path, pairs: Sequence[tuple[Path, Path | None]]) -> None:
    """Images and masks as links below `folder`; None leaves a mask out."""
    for part, files in zip(("images", "masks"), zip(*pairs, strict=True), strict=True):
        (folder / part).mkdir(parents=True, exist_ok=True)
        for file in filter(None, files):
            target = folder / part / file.name
            if not target.is_symlink():
                target.symlink_to(file.resolve())


def whole(work: Path, data: Path, name: str, classes: str = "") -> Path:
    """A set as it is, with its classes.toml."""
    folder = work / name
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("images", "masks"):
        if not (folder / part).is_symlink():
            (folder / part).symlink_to((data / name / part).resolve())
    if classes:
        (folder / "classes.toml").write_text(classes)
    return folder


def keep_out(folder: Path, is_kept_out: Callable[[str], bool], suffix: str = "") -> None:
    """Write the lists `train.txt` and `val.txt` of a dataset, by the names of its images."""
    names = sorted(path.stem for path in (folder / "images").iterdir())
    for part, wanted in (("train", False), ("val", True)):
        chosen = [name for name in names if is_kept_out(name) == wanted]
        (folder / f"{part}{suffix}.txt").write_text("".join(f"{name}\n" for name in chosen))


def one_in_five(work: Path, data: Path, name: str, subject: str) -> Path:
    """A set of one class, with lists: a fifth of it, drawn at random, is kept out of training."""
    folder = whole(work, data, name, f'[[class]]\nname = "{subject}"\n')
    names = sorted(path.stem for path in (folder / "images").iterdir())
    keep_out(folder, frozenset(random.Random(5).sample(names, len(names) // 5)).__contains__)
    return folder


def people(work: Path, data: Path) -> list[Path]:
    """Portraits in streets; and pictures of nobody whose terms allow any use: drawn cars, nuclei.

    Returns:
        The datasets; beside them lie `train.txt` and `val.txt`.
    """
    root = work / "people"
    photos = sorted((data / "people" / "images").iterdir())
    link(root / "portraits", [(path, data / "people" / "masks" / f"{path.stem}.png") for path in photos])
    nobody = [Path(path) for path in write_samples(str(work / "scenes"), SCENES, seed=SCENE_SEED)][:80]
    nuclei = sorted((data / "dsb2018" / "images").iterdir())
    nobody += random.Random(6).sample(nuclei, 80)
    link(root / "nobody", [(path, None) for path in nobody])
    (root / "nobody" / "masks").mkdir(exist_ok=True)
    for path in nobody:
        cv2.imwrite(str(root / "nobody" / "masks" / f"{path.stem}.png"), np.zeros_like(read_grey(str(path))))
    for name in ("portraits", "nobody"):
        (root / name / "classes.toml").write_text('[[class]]\nname = "person"\nid = 255\n')
    kept_out = set(random.Random(5).sample([path.stem for path in photos], len(photos) // 5))
    names = [(f"portraits/{path.stem}", path.stem in kept_out) for path in photos]
    names += [(f"nobody/{path.stem}", False) for path in nobody]
    for part, wanted in (("train", False), ("val", True)):
        members = [name for name, is_kept_out in names if is_kept_out == wanted]
        (root / f"{part}.txt").write_text("".join(f"{member}\n" for member in members))
    return [root / "portraits", root / "nobody"]


def read_grey(path: str) -> np.ndarray:
    """A picture that is known to be there, uint8 (H, W)."""
    picture = cv2.imread(path, cv2.IMREAD_GRAYSCALE)
    assert picture is not None, path
    return picture


def close_ups(work: Path) -> Path:
    """66 drawn scenes as a thermal camera would show them from near, 16 of them for training."""
    folder = work / "close-ups"
    scenes = [Path(path) for path in write_samples(str(work / "plain"), 66, seed=3)]
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for index, path in enumerate(scenes):
        grain = np.random.default_rng(index)
        # Dark is bright, no colours, and grain below.
        picture = 255 - read_grey(str(path)).astype(np.float64)
        mask = read_grey(str(path).replace("/photos/", "/masks/").replace(".jpg", ".png"))
        height, width = picture.shape
        top, left = (int(grain.uniform(0.1, 0.4) * side) for side in picture.shape)
        part_of = slice(top, top + height // 2), slice(left, left + width // 2)
        noisy = cv2.GaussianBlur(picture[part_of], (0, 0), 1.5) + grain.normal(
            0, 10, (height // 2, width // 2)
        )
        cv2.imwrite(str(folder / "images" / f"{path.stem}.png"), np.clip(noisy, 0, 255).astype(np.uint8))
        cv2.imwrite(str(folder / "masks" / f"{path.stem}.png"), mask[part_of])
    (folder / "classes.toml").write_text('[[class]]\nname = "car"\n')
    for name, members in (("train", scenes[:16]), ("val", scenes[16:])):
        (folder / f"{name}.txt").write_text("".join(f"{path.stem}\n" for path in members))
    return folder
