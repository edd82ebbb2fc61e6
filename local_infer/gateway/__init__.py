"""The OpenAI API towards clients: requests, answers, errors, keys, limits."""
