"""Look through what a run has made, before it is believed."""
