"""Does loading keep up? Steps fed from files against the same steps on one batch that lies in memory.

    python -m scripts.bench_train [--size 160x240] [--widths 32,64,128,256,512] [--batch-size 8] [--steps 12]
    [--rounds 5]

Rounds alternate in one process, so that a noisy neighbour meets both. "remembered" are samples of a second
epoch, "decoded" those of a first one, whose photos and masks are read from their files. Carvana's photos if
they are there, else drawn ones.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from scripts import carvana
from unet_batch.datasets.find import find_dataset
from unet_batch.scenes import write_samples
from unet_batch.training.loop import epoch_order, training_batches
from unet_batch.training.options import Options
from unet_batch.training.plan import TrainingPlan, make_plan
from unet_batch.training.ranks import Ranks
from unet_batch.training.samples import OVERSAMPLING, Samples, memory_budget
from unet_batch.training.step import build_state, train_step


def seconds(trainee: object, plan: TrainingPlan, samples: Samples, epoch: int, steps: int) -> float:
    """A step's seconds, loading and all, over `steps` of an epoch; one more at first fills the queue."""
    stream = training_batches(plan, Ranks(), samples, epoch, 0)
    train_step(trainee, next(stream)).item()  # type: ignore[arg-type]
    begun = time.perf_counter()
    for _ in range(steps):
        train_step(trainee, next(stream)).item()  # type: ignore[arg-type]
    taken = (time.perf_counter() - begun) / steps
    stream.close()
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="160x240")
    parser.add_argument("--widths", default="32,64,128,256,512")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--augment", default="strong")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    height, width = map(int, options.size.split("x"))

    with tempfile.TemporaryDirectory() as folder:
        root = carvana.data_folder() / "carvana"
        if not root.is_dir():
            write_samples(folder, 250, (1280, 1918), seed=5)
            root = Path(folder)
        plan = make_plan(
            find_dataset(str(root)),
            str(Path(folder) / "bench.safetensors"),
            Options(
                size=(height, width),
                widths=tuple(map(int, options.widths.split(","))),
                batch_size=options.batch_size,
                augment=options.augment,
                epochs=100,
            ),
        )
        trainee = build_state(plan, Ranks())
        trainee.model.train()
        samples = Samples(plan.dataset, plan.train, plan.spec.input_size, OVERSAMPLING, memory_budget())
        batch = next(training_batches(plan, Ranks(), samples, 0, 0))
        rows = []
        for turn in range(options.rounds):
            forgetful = Samples(plan.dataset, plan.train, plan.spec.input_size, OVERSAMPLING, 0)
            decoded = seconds(trainee, plan, forgetful, turn, options.steps)
            for number in epoch_order(plan, turn)[: (options.steps + 4) * plan.batch_size]:
                samples[number]
            remembered = seconds(trainee, plan, samples, turn, options.steps)
            begun = time.perf_counter()
            for _ in range(options.steps):
                train_step(trainee, batch).item()
            fixed = (time.perf_counter() - begun) / options.steps
            rows.append((fixed, remembered, decoded))
            print(f"fixed {fixed:.3f} s  remembered {remembered:.3f} s  decoded {decoded:.3f} s", flush=True)
        for name, index in (("remembered", 1), ("decoded", 2)):
            ratio = statistics.median(row[index] / row[0] for row in rows)
            print(f"{name:<11} {ratio:.3f} times a step on a fixed batch, median of {len(rows)}")


if __name__ == "__main__":
    main()
