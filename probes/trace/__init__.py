"""`probe-agent trace`: the hops on the way to a mirror, where time and packets are lost on it, and the path MTU."""
