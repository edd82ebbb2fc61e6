"""Shared kernel of nearpath: units, errors, configuration, messages, bus, clock, metrics. Imports nothing of ours."""
