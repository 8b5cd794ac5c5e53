"""Measurements, trainings and demonstrations, run from the root by `python -m scripts.NAME`."""
