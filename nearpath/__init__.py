"""Composition root: the command line, the appliance, its HTTP interfaces."""
