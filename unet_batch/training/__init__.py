"""Data to train on: found, checked and split; figures of quality with their uncertainty."""
