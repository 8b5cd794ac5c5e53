"""A picture in, a mask out."""
