"""Stored answers found again: the n-gram graph, its vetoes, and proof before use."""
