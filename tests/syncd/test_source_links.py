"""Files with several names at the source: what is done through one name, and that name goes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

import pytest

from tests.syncd.churn import scan
from tests.syncd.watched import Start, indexed, settle, told, with_both, write


def forget(path: str) -> None:
    os.unlink(path)


def forget_with_its_directory(path: str) -> None:
    shutil.rmtree(os.path.dirname(path))


def rename_over(path: str) -> None:
    with open(path + ".new", "w") as file:
        file.write("of another file")
    os.rename(path + ".new", path)


def move_away(path: str) -> None:
    os.rename(path, path + "-moved")


def linked(root: bytes) -> str:
    """A second name, d/b, of the file a."""
    other = os.path.join(root, b"d", b"b")
    os.mkdir(os.path.dirname(other))
    os.link(os.path.join(root, b"a"), other)
    return os.fsdecode(other)


@with_both
@pytest.mark.parametrize("lose", [forget, forget_with_its_directory, rename_over, move_away])
def test_what_was_written_through_a_name_that_went_at_once_is_told_of_the_other_names(
    root: bytes, start: Start, lose: Callable[[str], None]
) -> None:
    """Seen in an hour of churn: the one event is of a name that is gone when it is looked at."""
    write(root, b"a", b"same")
    other = linked(root)
    source = start()
    settle(source)
    at = source.status.sequence
    write(root, b"d/b", b"something else")
    os.chmod(other, 0o600)
    lose(other)
    assert "u a" in told(source, at)
    assert indexed(source) == scan(root)


@with_both
def test_that_a_name_went_is_nothing_new_of_the_others(root: bytes, start: Start) -> None:
    """A tree of hard-linked snapshots loses one: nothing of all the others is told, or fetched, again."""
    write(root, b"a", b"same")
    other = linked(root)
    source = start()
    settle(source)
    at = source.status.sequence
    shutil.rmtree(os.path.dirname(other))
    assert told(source, at) == ["x d", "u ."]
    start.stop()
    source = start()
    assert told(source, at) == ["x d", "u ."]
