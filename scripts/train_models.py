"""Train the bundled models, and the ones whose figures the README gives, with `unet-batch train`.

    python -m scripts.train_models TARGET [--work DIR] [--data DIR] [--dry-run]

Each target is one or several trainings; the commands are printed before they run, and an interrupted one goes
on where it was.

| target    | what                                                                                           |
|-----------|------------------------------------------------------------------------------------------------|
| default   | cars anywhere, on a pre-trained encoder; anywhere-3 is `fast`, anywhere-4 `default` and `fine` |
| classic   | cars at 160x240, a plain U-Net: Carvana by car, and drawn scenes                               |
| random48  | the widths of classic, Carvana with 48 validation photos drawn at random, as others measure    |
| camvid    | eleven classes of street scenes, the end of each drive kept out                                |
| dsb2018   | nuclei                                                                                         |
| isbi2012  | membranes: on the five slices that `train` keeps out; and five models judge all 24 in turn     |
| lungs     | lungs in chest X-rays of two hospitals, a fifth of them drawn and kept out                     |
| satellite | roads in aerial photos, a fifth of them drawn and kept out                                     |
| people    | people in streets, a fifth drawn and kept out; drawn cars and nuclei show nobody               |
| curve     | plain U-Nets of half and a quarter of those widths, at several sizes                           |
| few       | sixteen drawn photos of a kind the bundled model has not seen: from it, and from scratch       |

The photos are expected below the data folder (`UNET_BATCH_DATA`, else ../shared/data), each set with images/
and masks/. What is bundled is put there by `scripts/bundle.py`, after `scripts/eval_models.py FILE`.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from scripts import carvana
from scripts.training_sets import (
    CAMVID,
    DRIVES,
    LAST,
    cars,
    cars_anywhere,
    close_ups,
    keep_out,
    one_in_five,
    people,
    whole,
)

FULL, HALF, QUARTER = "32,64,128,256,512", "16,32,64,128,256", "8,16,32,64,128"


class Trainings:
    """Runs `unet-batch train`, one after the other."""

    def __init__(self, work: Path, dry_run: bool) -> None:
        self.work, self.dry_run = work, dry_run

    def __call__(self, name: str, datasets: Path | Sequence[Path], options: str) -> Path:
        """Train, unless the model card says that it is done; the model.

        In the options `{lists}` is the folder of the dataset, or the one that holds several, and `{work}`
        that of the models.
        """
        output = self.work / f"{name}.safetensors"
        folders = [datasets] if isinstance(datasets, Path) else list(datasets)
        lists = folders[0] if len(folders) == 1 else folders[0].parent
        arguments = ["train", *map(str, folders), "-o", str(output)]
        # Regular expressions have braces too.
        arguments += shlex.split(options.replace("{lists}", str(lists)).replace("{work}", str(self.work)))
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
LISTS = "--train-list {lists}/train.txt --val-list {lists}/val.txt"
EACH = f"{LISTS} --group-by '^(.+)$'"  # every picture is a group of its own
ENCODER = "efficientnet-lite0"
AT_160 = "--size 160x240 --batch-size 8"
AT_320 = f"{BY_CAR} --size 320x480 --batch-size 8"


# A photo of the studio belongs to its car, every other one to itself.
ANYWHERE = (
    f"{LISTS} --keep last --batch-size 8 --augment strong"
    r" --group-by '(?P<group>^[0-9a-f]{12}(?=_\d\d$)|^.+$)'"
)


def train_default(train: Trainings, data: Path) -> None:
    """Train `fast`, and from it `default`, on cars anywhere: small pictures first."""
    folders = cars_anywhere(train.work, data)
    # Least of what is alike: the studio's photos are 16 views of each car, before one wall.
    shares = "--weights 1,0.35,0.4,0.25,0.4 --paste 0.2"
    first = f"{shares} --encoder {ENCODER} --size 192x288 --epochs 14 --lr 1.5e-3 --seed 1"
    train("anywhere-1", folders, f"{ANYWHERE} {first}")
    second = f"{shares} --init {{work}}/anywhere-1.safetensors --size 320x480"
    train("anywhere-2", folders, f"{ANYWHERE} {second} --epochs 6 --plain-epochs 2 --lr 8e-4 --seed 2")
    third = "--weights 1.4,0.35,0.3,0.2,0.4 --paste 0.3 --init {work}/anywhere-2.safetensors --size 256x384"
    train("anywhere-3", folders, f"{ANYWHERE} {third} --epochs 11 --lr 1e-3 --seed 3")
    last = "--weights 1.2,0.4,0.2,0.15,0.3 --paste 0.2 --init {work}/anywhere-3.safetensors --size 448x672"
    train("anywhere-4", folders, f"{ANYWHERE} {last} --epochs 2 --plain-epochs 1 --lr 5e-4 --seed 4")


def train_classic(train: Trainings, data: Path) -> None:
    """Train `classic`: coarse features first, then twice at the full size."""
    folder = cars(train.work, data)
    train_coarse(train, folder)
    first = f"{BY_CAR} --init {{work}}/coarse.safetensors {AT_160} --epochs 12 --lr 8e-4 --seed 2"
    train("classic-1", folder, first)
    # After twelve epochs the loss of training was as high as that of validation: not learned enough.
    second = f"{BY_CAR} --init {{work}}/classic-1.safetensors {AT_160} --epochs 8 --lr 5e-4 --seed 6"
    train("classic", folder, second)


def train_random48(train: Trainings, data: Path) -> None:
    """Train on all Carvana photos but 48 drawn at random, as the references do."""
    folder = cars(train.work, data)
    train_coarse(train, folder)
    lists = "--train-list {lists}/random48.txt --val-list {lists}/random48-val.txt --keep last"
    # Views of one car lie on both sides, as the references measure: each photo is its own group.
    lists += " --group-by '^(.+)$'"
    # `classic` is 99.72 % right on the photos it learned from: so few steps cannot learn what augmentation
    # makes.
    lists += " --augment none"
    options = f"{lists} --init {{work}}/coarse.safetensors {AT_160} --epochs 26 --lr 8e-4 --seed 5"
    train("random48", folder, options)


def train_curve(train: Trainings, data: Path) -> None:
    """Train plain U-Nets of other widths and sizes, for the curve of Dice against milliseconds."""
    folder = cars(train.work, data)
    train_coarse(train, folder)
    whole_batch = "--epochs 16 --batch-size 16 --lr 1.5e-3 --seed 3"
    train("half-80x120", folder, f"{BY_CAR} --size 80x120 --widths {HALF} {whole_batch}")
    train("half-160x240", folder, f"{BY_CAR} --size 160x240 --widths {HALF} {whole_batch}")
    first = f"{AT_320} --init {{work}}/half-160x240.safetensors --epochs 10 --lr 1e-3 --seed 4"
    train("half-320x480-1", folder, first)
    # The loss of training still fell with that of validation: the same again, more gently.
    again = f"{AT_320} --init {{work}}/half-320x480-1.safetensors --epochs 5 --lr 5e-4 --seed 7"
    train("half-320x480", folder, again)
    train("quarter-160x240", folder, f"{BY_CAR} --size 160x240 --widths {QUARTER} {whole_batch}")
    init = "--init {work}/quarter-160x240.safetensors"
    train("quarter-320x480", folder, f"{AT_320} {init} --epochs 8 --lr 1e-3 --seed 4")


def train_camvid(train: Trainings, data: Path) -> None:
    """Train on CamVid, at half the size first."""
    # Ids 0..10 in the order of the names; 11 is void.
    classes = "void = 11\n" + "".join(f'[[class]]\nname = "{name}"\n' for name in CAMVID)
    folder = whole(train.work, data, "camvid", classes)
    # The last quarter of each of the three drives is kept out, as whole stretches of a thousand frames.
    keep_out(folder, lambda name: name.startswith(LAST))
    street = f"{LISTS} --group-by '{DRIVES}' --keep last --batch-size 8 --augment strong"
    first = f"--encoder {ENCODER} --size 192x256 --epochs 16 --lr 2e-3"
    train("camvid-1", folder, f"{street} {first}")
    # Poles, signs and people are a few pixels wide at that size.
    then = "--init {work}/camvid-1.safetensors --size 352x480 --epochs 6 --plain-epochs 1 --lr 1e-3 --seed 1"
    train("camvid", folder, f"{street} {then}")


def train_dsb2018(train: Trainings, data: Path) -> None:
    """Train on the nuclei of the Data Science Bowl 2018."""
    folder = whole(train.work, data, "dsb2018", '[[class]]\nname = "nucleus"\n')
    # One kind in fifty shows few nuclei, dark on bright: in a Dice over the batch it would hardly count.
    cells = "--size 256x256 --batch-size 8 --flip any --augment elastic --dice picture --keep last"
    train("dsb2018", folder, f"{cells} --encoder {ENCODER} --epochs 24 --plain-epochs 2 --lr 2e-3")


def train_isbi2012(train: Trainings, data: Path) -> None:
    """Train on the membranes of ISBI 2012, then five times more, to judge each slice by a model new to it."""
    folder = whole(train.work, data, "isbi2012", '[[class]]\nname = "cell"\n')
    slices = sorted((path.stem for path in (folder / "images").iterdir()), key=int)
    # Windows, since whole slices make nine steps an epoch: too few to learn from in the same time. Not
    # upside down: the labels lie half a row above what they mark, on every slice, and so may the masks.
    tissue = "--keep last --size 512x512 --crop 256x256 --batch-size 4 --augment elastic"
    tissue += f" --encoder {ENCODER} --epochs 40 --plain-epochs 2 --lr 2e-3"
    # First the five slices that `train` itself keeps out, by a hash of their names.
    train("isbi2012", folder, f"--group-by '^(.+)$' {tissue}")
    predicted = folder / "predicted"
    predicted.mkdir(exist_ok=True)
    # Then all of them. Neighbours in the stack resemble each other: five in a row are kept out.
    for fold in range(5):
        # There are 24: the last two folds share a slice, so that both learn from 19. It is judged once.
        first = min(5 * fold, len(slices) - 5)
        kept_out, judged = slices[first : first + 5], slices[5 * fold : 5 * fold + 5]
        keep_out(folder, kept_out.__contains__, f"-{fold}")
        lists = f"--train-list {{lists}}/train-{fold}.txt --val-list {{lists}}/val-{fold}.txt"
        model = train(f"isbi2012-{fold}", folder, f"{lists} --group-by '^(.+)$' {tissue}")
        images = [str(folder / "images" / f"{name}.png") for name in judged]
        masks = train.work / f"isbi2012-{fold}-masks"
        train.run("run", *images, "-m", str(model), "-o", str(masks), "--overwrite")
        for mask in (masks / "masks").glob("*.png"):
            (predicted / mask.name).unlink(missing_ok=True)
            (predicted / mask.name).symlink_to(mask)
    train.run("evaluate", str(folder), "--predictions", str(predicted))


def train_lungs(train: Trainings, data: Path) -> None:
    """Train on lungs in chest X-rays of two hospitals."""
    folder = one_in_five(train.work, data, "lungs", "lung")
    # All are taken upright, from the front and at one distance.
    options = "--size 256x256 --batch-size 8 --augment light --epochs 40 --plain-epochs 4 --lr 1.5e-3"
    train("lungs", folder, f"{EACH} --keep last --encoder {ENCODER} {options}")


def train_satellite(train: Trainings, data: Path) -> None:
    """Train on roads in aerial photos, seen through windows at the photos' own scale."""
    folder = one_in_five(train.work, data, "satellite", "road")
    options = "--size 416x416 --crop 256x256 --batch-size 8 --augment strong --flip any"
    options += " --epochs 14 --plain-epochs 2 --lr 1.5e-3"
    train("satellite", folder, f"{EACH} --keep last --encoder {ENCODER} {options}")


def train_people(train: Trainings, data: Path) -> None:
    """Train on people in streets, beside drawn cars and nuclei: nobody."""
    folders = people(train.work, data)
    options = "--weights 1,0.3 --paste 0.1 --augment strong --batch-size 8"
    first = f"--encoder {ENCODER} --size 256x192 --epochs 14 --lr 1.5e-3"
    train("people-1", folders, f"{EACH} --keep last {options} {first}")
    then = "--init {work}/people-1.safetensors --size 480x320 --epochs 8 --plain-epochs 2 --lr 8e-4 --seed 1"
    train("people", folders, f"{EACH} --keep last {options} {then}")


def train_few(train: Trainings, data: Path) -> None:
    """Train on sixteen pictures of a new kind: from `classic`, and from scratch."""
    folder = close_ups(train.work)
    lists = "--train-list {lists}/train.txt --val-list {lists}/val.txt"
    options = f"{lists} --size 160x240 --epochs 60 --batch-size 8"
    train("few-from-default", folder, f"{options} --init classic")
    train("few-from-scratch", folder, f"{options} --widths {FULL}")


TARGETS: dict[str, Callable[[Trainings, Path], None]] = {
    "default": train_default,
    "classic": train_classic,
    "random48": train_random48,
    "camvid": train_camvid,
    "dsb2018": train_dsb2018,
    "isbi2012": train_isbi2012,
    "lungs": train_lungs,
    "satellite": train_satellite,
    "people": train_people,
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
