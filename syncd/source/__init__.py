"""Watching a tree: what changed, told from the disk and the index."""
