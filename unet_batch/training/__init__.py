"""Training: from a dataset to a checkpoint with its model card."""
