"""Which step answers, and how the answer says so."""
