"""Names and bytes on disk; the standard library only."""
