"""Where answers come from: which upstream, how often, and what its failures mean."""
