"""What can run on this machine, why not, and what would change it: `unet-batch doctor` as plain records."""
