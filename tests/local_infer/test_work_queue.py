"""The queue in front of the models: order, room, time, batches, and what to unload. Time is an argument."""

from __future__ import annotations

import itertools

from local_infer.generation.work_queue import Held, WorkQueue, batch_size, may_load, to_unload
from local_infer.model import Priority

P = Priority


def drain(queue: WorkQueue[str], part: str = "p") -> list[str]:
    taken = []
    while keys := queue.take(part, 1):
        taken += keys
    return taken


def test_priority_then_first_come_first_served() -> None:
    arrivals = [
        ("s1", P.SHADOW),
        ("b1", P.BACKGROUND),
        ("i1", P.INTERACTIVE),
        ("f1", P.PREFETCH),
        ("i2", P.INTERACTIVE),
    ]
    for order in itertools.permutations(arrivals):
        queue: WorkQueue[str] = WorkQueue(10)
        for key, priority in order:
            assert queue.put(key, "p", priority, 100.0, 0.0) == []
        interactive = [key for key, priority in order if priority is P.INTERACTIVE]
        assert drain(queue) == [*interactive, "b1", "s1", "f1"]
        assert len(queue) == 0


def test_full_the_least_urgent_leaves_for_a_more_urgent_one_only() -> None:
    queue: WorkQueue[str] = WorkQueue(3)
    for key, priority in [("s1", P.SHADOW), ("s2", P.SHADOW), ("i1", P.INTERACTIVE)]:
        assert queue.put(key, "p", priority, 100.0, 0.0) == []
    assert queue.put("s3", "p", P.SHADOW, 100.0, 0.0) == ["s3"]
    assert queue.put("i2", "p", P.INTERACTIVE, 100.0, 0.0) == ["s2"]
    assert queue.put("b1", "p", P.BACKGROUND, 100.0, 0.0) == ["s1"]
    assert queue.put("i3", "p", P.INTERACTIVE, 100.0, 0.0) == ["b1"]
    assert queue.put("i4", "p", P.INTERACTIVE, 100.0, 0.0) == ["i4"]
    assert drain(queue) == ["i1", "i2", "i3"]


def test_no_room_at_all() -> None:
    queue: WorkQueue[str] = WorkQueue(0)
    assert queue.put("i1", "p", P.INTERACTIVE, 100.0, 0.0) == ["i1"]
    assert len(queue) == 0


def test_who_waits_in_vain_leaves_and_makes_room() -> None:
    queue: WorkQueue[str] = WorkQueue(2)
    queue.put("a", "p", P.INTERACTIVE, 5.0, 0.0)
    queue.put("b", "p", P.INTERACTIVE, 9.0, 0.0)
    assert queue.expire(4.9) == []
    assert queue.put("c", "p", P.SHADOW, 20.0, 5.0) == ["a"]
    assert queue.put("late", "p", P.INTERACTIVE, 5.0, 5.0) == ["late"]
    assert drain(queue) == ["b", "c"]


def test_removed_ones_are_not_handed_out() -> None:
    queue: WorkQueue[str] = WorkQueue(5)
    for key in "abc":
        queue.put(key, "p", P.SHADOW, 9.0, 0.0)
    queue.remove("b")
    queue.remove("nobody")
    assert queue.waiting(P.SHADOW) == 2
    assert drain(queue) == ["a", "c"]


def test_parts_are_served_by_who_waits_most_urgently() -> None:
    queue: WorkQueue[str] = WorkQueue(9)
    queue.put("e1", "embedder", P.SHADOW, 9.0, 0.0)
    queue.put("f1", "faq", P.BACKGROUND, 9.0, 0.0)
    queue.put("e2", "embedder", P.INTERACTIVE, 9.0, 0.0)
    assert queue.parts() == ["embedder", "faq"]
    assert queue.next_part(["faq", "embedder"]) == "embedder"
    assert queue.next_part(["faq"]) == "faq"  # the other one is still being loaded
    assert queue.next_part([]) is None
    assert queue.take("embedder", 8) == ["e2"]  # a shadow does not ride along: the urgent one would wait for it
    assert queue.take_all("embedder") == ["e1"]
    assert queue.take("embedder", 8) == []


def test_batch_by_length_and_memory() -> None:
    assert batch_size(5, 16, 1 << 30, 1 << 20) == 5
    assert batch_size(50, 16, 1 << 30, 1 << 20) == 16
    assert batch_size(50, 16, 8 << 20, 1 << 20) == 4  # half of what is above the floor
    assert batch_size(50, 16, 0, 1 << 20) == 1
    assert batch_size(0, 16, 0, 0) == 1
    assert batch_size(50, 16, 0, 0) == 16  # need not known


def test_unloads_the_longest_unused_until_the_floor_is_kept() -> None:
    held = [
        Held("new", 90.0, 100, False),
        Held("old", 10.0, 100, False),
        Held("busy", 1.0, 500, True),
        Held("old-large", 10.0, 300, False),
    ]
    assert to_unload(held, 1000, 1000) == []
    assert to_unload(held, 900, 1000) == ["old-large"]
    assert to_unload(held, 650, 1000) == ["old-large", "old"]
    assert to_unload(held, 0, 1000) == ["old-large", "old", "new"]  # never the busy one


def test_loading_keeps_the_floor() -> None:
    assert may_load(0, 100, 100)
    assert may_load(50, 150, 100)
    assert not may_load(51, 150, 100)
    assert not may_load(0, 99, 100)
