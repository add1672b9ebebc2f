"""Tool calls out of what a model writes: one file a format."""
