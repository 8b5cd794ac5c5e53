"""Pictures and masks on disk: which belong together, what the masks mean, and what is wrong with them."""
