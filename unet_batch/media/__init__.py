"""Pixels in and out: pictures, clips, geometry and drawing."""
