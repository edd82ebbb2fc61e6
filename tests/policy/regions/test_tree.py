"""The tree of regions: ids, relations, and everything that is no tree."""

from __future__ import annotations

import pytest

from policy.regions import RegionTree, RegionTreeError
from policy.regions.tree import MAX_DEPTH

TREE = RegionTree({"cn": None, "cn-telecom": "cn", "cn-telecom-sh": "cn-telecom", "cn-unicom": "cn", "us": "world"})


def test_world_is_the_first_and_the_others_follow_as_given() -> None:
    assert TREE.names == ("world", "cn", "cn-telecom", "cn-telecom-sh", "cn-unicom", "us")
    assert [TREE.id_of(name) for name in TREE.names] == [0, 1, 2, 3, 4, 5]
    assert TREE.root == "world"
    assert TREE.parents["us"] == "world"
    assert TREE.parents["world"] is None


def test_ancestors_go_up_to_the_world() -> None:
    assert TREE.ancestors("cn-telecom-sh") == ("cn-telecom", "cn", "world")
    assert TREE.ancestors("us") == ("world",)
    assert TREE.ancestors("world") == ()


def test_descendants() -> None:
    assert TREE.is_descendant("cn-telecom-sh", "cn")
    assert TREE.is_descendant("us", "world")
    assert not TREE.is_descendant("cn", "cn-telecom-sh")
    assert not TREE.is_descendant("cn", "cn")
    assert not TREE.is_descendant("world", "world")


@pytest.mark.parametrize(
    ("a", "b", "steps"),
    [
        ("cn", "cn", 0),
        ("cn", "world", 1),
        ("cn-telecom", "cn-unicom", 2),
        ("cn-telecom-sh", "cn-unicom", 3),
        ("cn-telecom-sh", "us", 4),
        ("world", "cn-telecom-sh", 3),
    ],
)
def test_distance_counts_the_steps_over_the_nearest_common_ancestor(a: str, b: str, steps: int) -> None:
    assert TREE.distance(a, b) == TREE.distance(b, a) == steps


def test_the_empty_tree_is_the_world() -> None:
    assert RegionTree({}).names == ("world",)


def test_unknown_names_are_key_errors() -> None:
    with pytest.raises(KeyError):
        TREE.id_of("atlantis")


def test_all_problems_are_listed_at_once() -> None:
    with pytest.raises(RegionTreeError) as caught:
        RegionTree({"a": "b", "b": "a", "c": "nowhere", "d": "c", "self": "self", "below": "a"})
    text = str(caught.value)
    assert [problem.path for problem in caught.value.problems] == ["a", "b", "c", "self"]
    assert "a -> b -> a" in text
    assert "'nowhere' is not defined" in text
    assert "self -> self" in text


def test_world_cannot_have_a_parent() -> None:
    with pytest.raises(RegionTreeError, match="built-in root"):
        RegionTree({"cn": None, "world": "cn"})


def test_depth_is_limited() -> None:
    def chain(count: int) -> dict[str, str | None]:
        return {f"r{i}": f"r{i - 1}" if i else None for i in range(count)}

    assert len(RegionTree(chain(MAX_DEPTH)).ancestors(f"r{MAX_DEPTH - 1}")) == MAX_DEPTH
    with pytest.raises(RegionTreeError, match="more than 32 levels"):
        RegionTree(chain(MAX_DEPTH + 1))


def test_a_long_loop_is_reported_by_its_members_only() -> None:
    loop = {f"r{i}": f"r{(i + 1) % 40}" for i in range(40)}
    with pytest.raises(RegionTreeError) as caught:
        RegionTree({**loop, "below": "r0"})
    assert caught.value.count >= 40 or all("own ancestor" in p.what for p in caught.value.problems)
