"""Everything that needs a GPU, run and written down: `python -m scripts.gpu_check`."""
