"""A copy of a tree: taken in batch by batch from a parent, and kept as it has it."""
