"""Authoritative DNS server."""
