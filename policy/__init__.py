"""Pure decisions, no IO: regions, estimate, decide, explain, replay."""
