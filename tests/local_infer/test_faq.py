"""The FAQ file: both forms, and every fault with its line, all at once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ConfigError
from local_infer.retrieval.faq import FaqEntry, read_faq
from local_infer.retrieval.question import system_context

YAML = """
- question: 如何退款
  answer: 在订单页申请。
- id: hours
  questions: [When are you open?, What are your hours?, When are you open?]
  answer: |
    From 9 to 5.
  tenant: shop
  system: You are a help desk.
"""


def test_yaml() -> None:
    first, second = read_faq(YAML.encode(), "faq.yaml")
    assert (first.questions, first.answer, first.tenant, first.context) == (("如何退款",), "在订单页申请。", "", b"")
    assert second.id == "hours"
    assert second.questions == ("When are you open?", "What are your hours?")
    assert second.tenant == "shop"
    assert second.context == system_context("You are a help desk.")


def test_json_lines() -> None:
    line = '{"question": "q\u2028?", "answer": "a"}'
    (entry,) = read_faq(f"\ufeff{line}\r\n\n".encode(), "faq.jsonl")
    assert entry.questions == ("q\u2028?",)
    (other,) = read_faq(line.encode(), "faq.ndjson")
    assert other.id == entry.id


@pytest.mark.parametrize(
    ("name", "text", "places"),
    [
        ("f.jsonl", '{"question": "q", "answer": "a"}\n{oops\n{"question": 5, "answer": "a"}', ["2", "3"]),
        ("f.jsonl", '{"answer": "a"}\n{"question": "q", "questions": ["q"], "answer": "a"}', ["1", "2"]),
        ("f.jsonl", '{"question": "q"}\n[]\n{"question": "q", "answer": "a", "anwser": "b"}', ["1", "2", "3"]),
        ("f.jsonl", '{"id": "x", "question": "q", "answer": "a"}\n{"id": "x", "question": "p", "answer": "b"}', ["2"]),
        ("f.yaml", "- question: yes\n  answer: a\n- question: q\n  answer: ''\n", ["1", "3"]),
        ("f.yaml", "question: q\n", ["1"]),
        ("f.yaml", "- question: [\n", ["2"]),
        ("f.yaml", "", ["1"]),
        ("f.jsonl", "", ["f.jsonl"]),
        ("f.jsonl", '{"question": "' + "x" * 1025 + '", "answer": "a"}', ["1"]),
        ("f.jsonl", '{"questions": ' + str([f"q{i}" for i in range(65)]).replace("'", '"') + ', "answer": "a"}', ["1"]),
        ("f.jsonl", '{"question": "q", "answer": "a", "tenant": 7}', ["1"]),
    ],
)
def test_faults_are_told_with_their_lines(name: str, text: str, places: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        read_faq(text.encode(), name)
    assert sorted({str(p.line) if p.line else p.file for p in caught.value.problems}) == places


def test_what_is_not_utf8() -> None:
    with pytest.raises(ConfigError, match=r"f\.yaml:2: .*is not UTF-8"):
        read_faq(b"- question: q\n  answer: \xff\n", "f.yaml")


@given(st.binary(max_size=200), st.sampled_from(["f.yaml", "f.jsonl"]))
def test_any_bytes_are_an_faq_or_a_fault(data: bytes, name: str) -> None:
    faults: tuple[object, ...] = ()
    entries: list[FaqEntry] = []
    try:
        entries = read_faq(data, name)
    except ConfigError as error:
        faults = error.problems
    assert bool(entries) != bool(faults)
