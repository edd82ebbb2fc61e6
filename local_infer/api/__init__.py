"""The API in bytes: requests read, answers of our own written, events, and the headers that a client sees."""
