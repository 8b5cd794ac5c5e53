"""What `unet-batch build-engine` does: checkpoint or graph -> ONNX -> plan, proven before it is installed.

built = build_engine(BuildOptions(model="cars.safetensors", engines_dir="engines"))
"""

from unet_batch.build.compose import BuildOptions, Built, build_engine, build_for_run

__all__ = ["BuildOptions", "Built", "build_engine", "build_for_run"]
