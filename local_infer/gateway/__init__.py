"""The front towards clients: connections, keys, limits, and what is told of each request."""
