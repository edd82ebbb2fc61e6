"""Probe agent."""
