"""What is kept of a tree: index, journal, hashes, signatures; and how others read it."""
