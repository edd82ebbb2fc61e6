"""API gateway with an honest fallback ladder."""
