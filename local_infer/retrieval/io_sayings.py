"""Reads the sayings that come with the package (`words/*.txt`): about 4,000 lines, once a process."""

from __future__ import annotations

from functools import cache
from importlib import resources

from local_infer.retrieval.sayings import Sayings, read_sayings

FOLDER = "words"


def shipped_texts() -> list[str]:
    """The files in the order of their names, without comment lines (`#`)."""
    folder = resources.files("local_infer.retrieval") / FOLDER
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".txt")), key=lambda file: file.name)
    return ["\n".join(line for line in file.read_text("utf-8").splitlines() if line[:1] != "#") for file in files]


@cache
def shipped_sayings() -> Sayings:
    """What `vetoes.find_veto` takes; the first call takes about a second of CPU time."""
    return read_sayings(shipped_texts())
