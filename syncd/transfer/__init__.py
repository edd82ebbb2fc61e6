"""Between nodes: the one port, its two sides, rsync, plain servers, which parent is followed."""
