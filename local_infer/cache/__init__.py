"""Answers kept: exact keys, freshness, memory and disk, one flight for equal requests."""
