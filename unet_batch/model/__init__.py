"""The U-Net, its checkpoints, and the models that come with the package."""
