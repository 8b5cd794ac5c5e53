"""What `unet-batch run`, `watch` and `merge` do."""
