"""Recent requests, recorded and played through the whole ladder."""
