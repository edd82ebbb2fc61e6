"""`local-infer bench`: traffic in profiles, an upstream that plays along or misbehaves, and the check of every answer."""
