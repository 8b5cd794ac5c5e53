"""How good masks are, and how far the figures can be trusted."""
