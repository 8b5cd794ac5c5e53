"""Train the bundled models, and the ones whose figures the README gives, with `unet-batch train`.

    python -m scripts.train_models TARGET [--work DIR] [--data DIR] [--dry-run]

Each target is one or several trainings; the commands are printed before they run, and an interrupted one goes
on where it was.

| target    | what                                                                                           |
|-----------|------------------------------------------------------------------------------------------------|
| default   | cars at 160x240: Carvana by car, and drawn scenes                                              |
| fast      | the same with half the widths: a quarter of the arithmetic                                     |
| fine      | the widths of fast at 320x480                                                                  |
| random48  | the widths of default, Carvana with 48 validation photos drawn at random, as others measure    |
| camvid    | eleven classes of street scenes, the end of each drive kept out                                |
| dsb2018   | nuclei                                                                                         |
| isbi2012  | membranes: on the five slices that `train` keeps out; and five models judge all 24 in turn     |
| curve     | more points of Dice against milliseconds: half the widths of fast, and small pictures          |
| few       | sixteen drawn photos of a kind the bundled model has not seen: from it, and from scratch       |

The photos are expected below the data folder (`UNET_BATCH_DATA`, else ../shared/data), each set with images/
and masks/. `default`, `fast` and `fine` are copied to unet_batch/model/weights only by hand, after
`scripts/eval_models.py FILE`.
"""

from __future__ import annotations

import argparse
import random
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from scripts import carvana
from unet_batch.scenes import write_samples

SCENES, SCENE_SEED = 160, 1  # the demo draws with seed 0, the evaluation with 2: no scene is in two sets
FULL, HALF, QUARTER = "32,64,128,256,512", "16,32,64,128,256", "8,16,32,64,128"

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


def cars_anywhere(work: Path, data: Path) -> tuple[list[Path], Path]:
    """Five datasets of cars and of none, and what is kept out of each.

    Kept out of training and validation: twelve cars of the studio, `test_*` of the streets, the last quarter
    of each drive. To judge recipes by, four more cars and every tenth of the other street photos validate.

    Returns:
        The datasets, and a folder with `train.txt`, `val.txt` and the pictures without a car to test on.
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
    drives = [path for path in sorted((data / "camvid" / "images").iterdir())]
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
    for name, is_test in (("none", False), ("none-test", True)):
        chosen = without_cars(root / "crops", data, is_test)
        for path in chosen:
            height, width = read_grey(str(path)).shape
            mask = root / name / "masks" / f"{path.parts[-3]}-{path.stem}.png"
            mask.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(mask), np.zeros((height, width), np.uint8))
            target = root / name / "images" / f"{path.parts[-3]}-{path.name}"
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.is_symlink():
                target.symlink_to(path.resolve())
            if not is_test:
                lists["train"].append(f"none/{target.stem}")
    names = ("street", "studio", "driving", "drawn", "none")
    for name in (*names, "none-test"):
        void = "void = 128\n" if name == "driving" else ""
        white = "id = 255\n" if name in ("driving", "none", "none-test") else ""
        (root / name / "classes.toml").write_text(f'{void}[[class]]\nname = "car"\n{white}')
    for name, members in lists.items():
        (root / f"{name}.txt").write_text("".join(f"{member}\n" for member in members))
    return [root / name for name in names], root


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


class Trainings:
    """Runs `unet-batch train`, one after the other."""

    def __init__(self, work: Path, dry_run: bool) -> None:
        self.work, self.dry_run = work, dry_run

    def __call__(self, name: str, dataset: Path, options: str) -> Path:
        """Train, unless the model card says that it is done; the model."""
        output = self.work / f"{name}.safetensors"
        arguments = [
            "train",
            str(dataset),
            "-o",
            str(output),
            *shlex.split(options.format(lists=dataset, work=self.work)),
        ]
        if output.with_suffix(".training").joinpath("state.safetensors").exists():
            arguments.append("--resume")
        else:
            arguments.append("--overwrite")
        self.run(*arguments, done=output.with_suffix(".md").exists())
        return output

    def run(self, *arguments: str, done: bool = False) -> None:
        """Print a command of unet-batch, and run it unless that was done or is not wanted."""
        print("unet-batch " + shlex.join(arguments), flush=True)
        if not self.dry_run and not done:
            command = [sys.executable, "-m", "unet_batch", *arguments]
            subprocess.run(command, check=True, cwd=Path(__file__).resolve().parents[1])


def train_coarse(train: Trainings, folder: Path) -> None:
    """Train coarse features at half the size, on no validation photo of any protocol."""
    train(
        "coarse",
        folder,
        "--train-list {lists}/both.txt --val-list {lists}/by-car-val.txt --keep last"
        f" --size 80x120 --widths {FULL} --epochs 16 --batch-size 16 --lr 1.2e-3 --seed 1",
    )


BY_CAR = "--train-list {lists}/by-car.txt --val-list {lists}/by-car-val.txt --keep last"
AT_160 = "--size 160x240 --batch-size 8"
AT_320 = f"{BY_CAR} --size 320x480 --batch-size 8"


def train_default(train: Trainings, data: Path) -> None:
    """Train `default`: coarse features first, then twice at the full size."""
    folder = cars(train.work, data)
    train_coarse(train, folder)
    first = f"{BY_CAR} --init {{work}}/coarse.safetensors {AT_160} --epochs 12 --lr 8e-4 --seed 2"
    train("default-1", folder, first)
    # After twelve epochs the loss of training was as high as that of validation: not learned enough.
    second = f"{BY_CAR} --init {{work}}/default-1.safetensors {AT_160} --epochs 8 --lr 5e-4 --seed 6"
    train("default", folder, second)


def train_fast(train: Trainings, data: Path) -> None:
    """Train `fast`."""
    whole_batch = "--epochs 16 --batch-size 16 --lr 1.5e-3 --seed 3"
    train("fast", cars(train.work, data), f"{BY_CAR} --size 160x240 --widths {HALF} {whole_batch}")


def train_fine(train: Trainings, data: Path) -> None:
    """Train `fast`, and from it `fine`."""
    train_fast(train, data)
    folder = cars(train.work, data)
    first = f"{AT_320} --init {{work}}/fast.safetensors --epochs 10 --lr 1e-3 --seed 4"
    train("fine-1", folder, first)
    # The loss of training still fell with that of validation: the same again, more gently.
    train("fine", folder, f"{AT_320} --init {{work}}/fine-1.safetensors --epochs 5 --lr 5e-4 --seed 7")


def train_random48(train: Trainings, data: Path) -> None:
    """Train on all Carvana photos but 48 drawn at random, as the references do."""
    folder = cars(train.work, data)
    train_coarse(train, folder)
    lists = "--train-list {lists}/random48.txt --val-list {lists}/random48-val.txt --keep last"
    # Views of one car lie on both sides, as the references measure: each photo is its own group.
    lists += " --group-by '^(.+)$'"
    # `default` is 99.72 % right on the photos it learned from: so few steps cannot learn what augmentation
    # makes.
    lists += " --augment none"
    options = f"{lists} --init {{work}}/coarse.safetensors {AT_160} --epochs 26 --lr 8e-4 --seed 5"
    train("random48", folder, options)


def train_curve(train: Trainings, data: Path) -> None:
    """Train the smaller models of the curve of Dice against milliseconds."""
    folder = cars(train.work, data)
    train_coarse(train, folder)
    as_fast = "--epochs 16 --batch-size 16 --lr 1.5e-3 --seed 3"
    train("half-80x120", folder, f"{BY_CAR} --size 80x120 --widths {HALF} {as_fast}")
    train("quarter-160x240", folder, f"{BY_CAR} --size 160x240 --widths {QUARTER} {as_fast}")
    init = "--init {work}/quarter-160x240.safetensors"
    train("quarter-320x480", folder, f"{AT_320} {init} --epochs 8 --lr 1e-3 --seed 4")


def train_camvid(train: Trainings, data: Path) -> None:
    """Train on CamVid at three sizes in turn."""
    # Ids 0..10 in the order of the names; 11 is void.
    classes = "void = 11\n" + "".join(f'[[class]]\nname = "{name}"\n' for name in CAMVID)
    folder = whole(train.work, data, "camvid", classes)
    # The last quarter of each of the three drives is kept out, as whole stretches of a thousand frames.
    last = ("0001TP_008", "0006R0_f03", "0016E5_07", "0016E5_08")
    names = sorted(path.stem for path in (folder / "images").iterdir())
    for part, is_last in (("train", False), ("val", True)):
        chosen = [name for name in names if name.startswith(last) == is_last]
        (folder / f"{part}.txt").write_text("".join(f"{name}\n" for name in chosen))
    lists = "--train-list {lists}/train.txt --val-list {lists}/val.txt --group-by '^(0001TP_...|......_f?..)'"
    street = f"{lists} --keep last"
    at_176 = f"--size 176x240 --batch-size 8 --widths {HALF} --epochs 40 --lr 2e-3 --augment strong"
    train("camvid-1", folder, f"{street} {at_176}")
    # After that the loss of training is no lower than that of validation: on to what streets look like, from
    # nearer.
    then = "--lr 1e-3 --augment light --init {work}/"
    at_240 = f"--size 240x320 --batch-size 8 --epochs 18 --seed 1 {then}camvid-1.safetensors"
    train("camvid-2", folder, f"{street} {at_240}")
    # Poles, signs and people are a few pixels wide at that size: the rest of the time is for the photos' own.
    at_368 = f"--size 368x480 --batch-size 4 --epochs 8 --seed 2 {then}camvid-2.safetensors"
    train("camvid", folder, f"{street} {at_368}")


def train_dsb2018(train: Trainings, data: Path) -> None:
    """Train on the nuclei of the Data Science Bowl 2018."""
    folder = whole(train.work, data, "dsb2018", '[[class]]\nname = "nucleus"\n')
    # One kind in fifty shows few nuclei, dark on bright: in a Dice over the batch it would hardly count.
    cells = "--size 256x256 --batch-size 4 --flip any --augment light --dice picture --keep last"
    train("dsb2018", folder, f"{cells} --init fast --epochs 50 --lr 2e-3")


def train_isbi2012(train: Trainings, data: Path) -> None:
    """Train on the membranes of ISBI 2012, then five times more, to judge each slice by a model new to it."""
    folder = whole(train.work, data, "isbi2012", '[[class]]\nname = "cell"\n')
    slices = sorted((path.stem for path in (folder / "images").iterdir()), key=int)
    # Windows, since whole slices make nine steps an epoch: too few to learn from in the same time. Not
    # upside down: the labels lie half a row above what they mark, on every slice, and so may the masks.
    tissue = (
        "--keep last --size 512x512 --crop 256x256 --epochs 45 --batch-size 2 --lr 1e-3 --augment elastic"
    )
    # First the five slices that `train` itself keeps out, by a hash of their names.
    train("isbi2012", folder, f"--group-by '^(.+)$' --init fast {tissue}")
    predicted = folder / "predicted"
    predicted.mkdir(exist_ok=True)
    # Then all of them. Neighbours in the stack resemble each other: five in a row are kept out.
    for fold in range(5):
        # There are 24: the last two folds share a slice, so that both learn from 19. It is judged once.
        first = min(5 * fold, len(slices) - 5)
        kept_out, judged = slices[first : first + 5], slices[5 * fold : 5 * fold + 5]
        for part, is_kept_out in (("train", False), ("val", True)):
            names = [name for name in slices if (name in kept_out) == is_kept_out]
            (folder / f"{part}-{fold}.txt").write_text("".join(f"{name}\n" for name in names))
        lists = f"--train-list {{lists}}/train-{fold}.txt --val-list {{lists}}/val-{fold}.txt"
        model = train(f"isbi2012-{fold}", folder, f"{lists} --group-by '^(.+)$' --init fast {tissue}")
        images = [str(folder / "images" / f"{name}.png") for name in judged]
        masks = train.work / f"isbi2012-{fold}-masks"
        train.run("run", *images, "-m", str(model), "-o", str(masks), "--overwrite")
        for mask in (masks / "masks").glob("*.png"):
            (predicted / mask.name).unlink(missing_ok=True)
            (predicted / mask.name).symlink_to(mask)
    train.run("evaluate", str(folder), "--predictions", str(predicted))


def train_few(train: Trainings, data: Path) -> None:
    """Train on sixteen pictures of a new kind: from `default`, and from scratch."""
    folder = close_ups(train.work)
    lists = "--train-list {lists}/train.txt --val-list {lists}/val.txt"
    options = f"{lists} --size 160x240 --epochs 60 --batch-size 8"
    train("few-from-default", folder, f"{options} --init default")
    train("few-from-scratch", folder, f"{options} --widths {FULL}")


TARGETS: dict[str, Callable[[Trainings, Path], None]] = {
    "default": train_default,
    "fast": train_fast,
    "fine": train_fine,
    "random48": train_random48,
    "camvid": train_camvid,
    "dsb2018": train_dsb2018,
    "isbi2012": train_isbi2012,
    "curve": train_curve,
    "few": train_few,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument(
        "--work", type=Path, default=Path("build/models"), help="where datasets are linked and models written"
    )
    parser.add_argument("--data", type=Path, default=carvana.data_folder())
    parser.add_argument("--dry-run", action="store_true", help="print the commands")
    options = parser.parse_args()
    TARGETS[options.target](Trainings(options.work.resolve(), options.dry_run), options.data)


if __name__ == "__main__":
    main()
