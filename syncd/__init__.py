"""Mirror replication."""
