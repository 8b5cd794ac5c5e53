"""Inference backends: everything that can execute the graph of `model.graph`."""
