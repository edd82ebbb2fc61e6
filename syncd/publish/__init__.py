"""From changes to what clients see: the plan, its guards, and its steps on the disk."""
