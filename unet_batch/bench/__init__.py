"""How fast a model runs on this machine: `unet-batch bench`."""
