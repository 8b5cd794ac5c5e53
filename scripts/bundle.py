"""Put a trained checkpoint among the bundled models, under its name, size and terms.

    python -m scripts.bundle TRAINED.safetensors NAME [--size HxW]
    python -m scripts.bundle --weights-of default NAME --size HxW

The terms are those of `unet_batch.model.zoo.BUNDLED`. With `--weights-of` the file holds no weights: it is
that model at another size.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace

from unet_batch.cli.options import parse_size
from unet_batch.model import checkpoint, zoo


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trained", nargs="?", help="the checkpoint; left out with --weights-of")
    parser.add_argument("name", choices=zoo.BUNDLED)
    parser.add_argument("--weights-of", choices=zoo.BUNDLED)
    parser.add_argument("--size", type=parse_size)
    options = parser.parse_args()
    if (options.trained is None) == (options.weights_of is None):
        parser.error("name a checkpoint, or --weights-of, not both")
    path = os.path.join(zoo.WEIGHTS, f"{options.name}.safetensors")
    loaded = checkpoint.load(options.trained or zoo.resolve(options.weights_of))
    spec = replace(
        loaded.spec,
        name=options.name,
        terms=zoo.BUNDLED[options.name].terms,
        input_size=options.size or loaded.spec.input_size,
    )
    if options.weights_of:
        checkpoint.share(path, f"{options.weights_of}.safetensors", spec)
    else:
        checkpoint.save(path, loaded.model, spec)
    print(f"{path}: {os.path.getsize(path):,} bytes, sha256 {checkpoint.identify(path).sha256[:12]}")


if __name__ == "__main__":
    main()
