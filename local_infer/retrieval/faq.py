"""The operator's FAQ file: YAML or JSON lines, into entries; all faults at once, each with its line.

    {"question": "如何关闭自动续费", "answer": "..."}                       JSON lines: one entry a line
    {"questions": ["...", "..."], "answer": "...", "tenant": "shop"}

    - questions: [How do I cancel?, How can I end my plan?]               YAML: a list of entries
      answer: ...
      system: You are the help desk of ...      # only for requests with just this system prompt; default: with none

`id` names an entry in logs and keeps what was learned of it; without one it is known by its text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from core.errors import ConfigError, Problem
from local_infer.retrieval.question import system_context

MOST_BYTES = 256 << 20
MOST_ENTRIES = 500_000
MOST_QUESTIONS = 64
LONGEST_QUESTION = 1024
LONGEST_ANSWER = 65_536
_MOST_PROBLEMS = 50
_KEYS = frozenset({"id", "question", "questions", "answer", "tenant", "system"})


@dataclass(frozen=True, slots=True)
class FaqEntry:
    """One answer with the questions it is for. `tenant` empty: for all; `context` as in `Question`."""

    id: str
    questions: tuple[str, ...]
    answer: str
    tenant: str
    context: bytes


def read_faq(data: bytes, name: str) -> list[FaqEntry]:
    """The entries of a file's bytes; `name` decides the form (.jsonl, .ndjson; else YAML). Raises ConfigError."""
    if len(data) > MOST_BYTES:
        raise ConfigError([Problem(name, 0, "", f"is larger than {MOST_BYTES >> 20} MiB: split it")])
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError([Problem(name, line, "", "is not UTF-8: convert the file")]) from None
    problems: list[Problem] = []
    raw = _json_lines if name.endswith((".jsonl", ".ndjson")) else _yaml_list
    entries: list[FaqEntry] = []
    ids: dict[str, int] = {}
    for line, value in raw(text, name, problems):
        entry = _entry(value, name, line, problems)
        if len(problems) >= _MOST_PROBLEMS or len(entries) >= MOST_ENTRIES:
            break
        if entry is None:
            continue
        if entry.id in ids:
            problems.append(Problem(name, line, "id", f"{entry.id!r} is also the entry of line {ids[entry.id]}"))
        ids[entry.id] = line
        entries.append(entry)
    if len(entries) >= MOST_ENTRIES:
        problems.append(Problem(name, 0, "", f"more than {MOST_ENTRIES} entries"))
    if not entries and not problems:
        problems.append(Problem(name, 0, "", "there is no entry in it"))
    if problems:
        raise ConfigError(problems)
    return entries


def _json_lines(text: str, name: str, problems: list[Problem]) -> Iterator[tuple[int, Any]]:
    # Not splitlines(): U+2028 and others may stand in a JSON string as they are.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except (ValueError, RecursionError) as error:
            problems.append(Problem(name, number, "", f"is not JSON: {error}"))


def _yaml_list(text: str, name: str, problems: list[Problem]) -> Iterator[tuple[int, Any]]:
    loader = yaml.CSafeLoader if hasattr(yaml, "CSafeLoader") else yaml.SafeLoader
    try:
        root = yaml.compose(text, Loader=loader)
        values = yaml.load(text, Loader=loader)
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or type(error).__name__
        problems.append(Problem(name, mark.line + 1 if mark else 0, "", f"is not YAML: {what}"))
        return
    if not isinstance(values, list) or not isinstance(root, yaml.SequenceNode):
        problems.append(Problem(name, 1, "", "must be a list of entries (each begins with `- `)"))
        return
    for node, value in zip(root.value, values, strict=True):
        yield node.start_mark.line + 1, value


def _entry(value: Any, name: str, line: int, problems: list[Problem]) -> FaqEntry | None:
    found: list[Problem] = []

    def fault(path: str, what: str) -> None:
        found.append(Problem(name, line, path, what))

    if not isinstance(value, dict):
        problems.append(Problem(name, line, "", "must be a mapping with `question` and `answer`"))
        return None
    for key in value:
        if key not in _KEYS:
            fault(str(key), f"is not known here: use {', '.join(sorted(_KEYS))}")
    both = [value.get("question"), value.get("questions")]
    if (both[0] is None) == (both[1] is None):
        fault("question", "give either `question` or `questions`")
    listed = both[1] if isinstance(both[1], list) else [both[0] if both[0] is not None else both[1]]
    questions = _texts(listed, "questions", LONGEST_QUESTION, fault)
    if len(listed) > MOST_QUESTIONS:
        fault("questions", f"at most {MOST_QUESTIONS}, better two entries")
    answer = _texts([value.get("answer")], "answer", LONGEST_ANSWER, fault)
    optional = {key: value.get(key, "") for key in ("id", "tenant", "system")}
    for key, given in optional.items():
        if not isinstance(given, str) or len(given) > LONGEST_ANSWER or (key != "system" and len(given) > 128):
            fault(key, "must be a text, not longer than 128 characters")
    if found or not answer:
        problems.extend(found)
        return None
    context = system_context(optional["system"]) if optional["system"] else b""
    ident = optional["id"] or _digest([*questions, *answer, optional["tenant"], context.hex()])
    return FaqEntry(ident, tuple(dict.fromkeys(questions)), answer[0], optional["tenant"], context)


def _texts(values: Sequence[Any], path: str, longest: int, fault: Any) -> list[str]:
    texts = []
    for value in values:
        if not isinstance(value, str) or not value.strip():
            fault(path, "must be a text that is not empty (quote numbers and yes/no)")
        elif len(value) > longest:
            fault(path, f"is {len(value)} characters long, at most {longest}")
        else:
            texts.append(value.strip())
    return texts


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(parts)).encode()).hexdigest()[:16]
