"""The masks of a run as the labels that annotation tools import."""
