"""syncd's configuration: what is taken, what is refused, and that all faults are told at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from core.config_sync import parse_clock
from core.errors import ConfigError
from core.io_config_sync import is_plain, read_sync_config, work_directory

KEY = "0f" * 32
ORIGIN: dict[str, Any] = {
    "version": 1,
    "node": "tokyo",
    "state_dir": "state",
    "trees": {"debian": {"path": "/srv/debian"}},
}
COPY: dict[str, Any] = {
    "version": 1,
    "node": "edge-1",
    "state_dir": "/var/lib/nearpath-sync",
    "parents": {"tokyo": {"url": "https://tokyo.example:8730", "token_file": "tokyo.token"}},
    "trees": {"debian": {"path": "/srv/debian", "parents": ["tokyo"], "public_key": KEY}},
}


def read(tmp_path: Path, config: dict[str, Any]) -> Any:
    file = tmp_path / "syncd.yaml"
    file.write_text(yaml.safe_dump(config))
    return read_sync_config(file)


def faults(tmp_path: Path, config: dict[str, Any]) -> list[tuple[str, str]]:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, config)
    return [(problem.path, problem.what) for problem in caught.value.problems]


def tree(**keys: Any) -> dict[str, Any]:
    return COPY | {"trees": {"debian": COPY["trees"]["debian"] | keys}}


def test_smallest_origin(tmp_path: Path) -> None:
    config = read(tmp_path, ORIGIN)
    assert config.state_dir == str(tmp_path / "state")
    assert config.trees["debian"].parents == []
    assert config.trees["debian"].mode == "live"


def test_files_are_placed_from_the_folder_of_the_configuration(tmp_path: Path) -> None:
    push = {"away": {"to": "rsync://m.example/debian", "password_file": "p"}}
    config = read(
        tmp_path,
        COPY
        | tree(key_file="k", push=push)
        | {
            "listen": ["0.0.0.0:8730"],
            "tls": {"cert": "c.pem", "key": "/etc/k.pem"},
            "children": {"e": {"token_sha256": "a" * 64}},
            "appliance": {"url": "https://a.example:8053", "token_file": "a.token", "ca_file": "ca.pem"},
        },
    )
    assert config.parents["tokyo"].token_file == str(tmp_path / "tokyo.token")
    assert config.trees["debian"].key_file == str(tmp_path / "k")
    assert config.trees["debian"].push["away"].password_file == str(tmp_path / "p")
    assert (config.tls.cert, config.tls.key) == (str(tmp_path / "c.pem"), "/etc/k.pem")
    assert (config.appliance.token_file, config.appliance.ca_file) == (
        str(tmp_path / "a.token"),
        str(tmp_path / "ca.pem"),
    )


def test_all_faults_at_once_with_line_and_path(tmp_path: Path) -> None:
    file = tmp_path / "syncd.yaml"
    file.write_text(
        "version: 1\nnode: Tokyo!\nstate_dir: s\nlisten: ['0.0.0.0:8730']\n"
        "parents:\n  up: {url: 'ftp://x', token_file: t}\n"
        "trees:\n  a: {path: relative, poll: 5}\n  b: {path: /srv, parents: [gone]}\n  c: {path: /srv/sub}\n"
    )
    with pytest.raises(ConfigError) as caught:
        read_sync_config(file)
    found = {(problem.line, problem.path) for problem in caught.value.problems}
    paths = {path for _, path in found}
    assert {"node", "parents.up.url", "trees.a.path", "trees.a.poll", "trees.b.parents[0]", "trees.c.path"} <= paths
    assert "listen[0]" in paths
    assert (2, "node") in found
    assert (10, "trees.c.path") in found


@pytest.mark.parametrize("path", ["srv", "/srv/../etc", "/", ""])
def test_paths_that_are_refused(tmp_path: Path, path: str) -> None:
    assert next(place for place, _ in faults(tmp_path, tree(path=path))).startswith("trees.debian")


def test_trees_must_be_apart(tmp_path: Path) -> None:
    trees = {"all": {"path": "/srv"}, "deb": {"path": "/srv/debian/"}, "srv2": {"path": "/srv2"}}
    assert [place for place, _ in faults(tmp_path, ORIGIN | {"trees": trees})] == ["trees.deb.path"]
    twice = {"one": {"path": "/srv"}, "two": {"path": "/srv/"}}
    assert [place for place, _ in faults(tmp_path, ORIGIN | {"trees": twice})] == ["trees.two.path"]
    read(tmp_path, ORIGIN | {"trees": {"a": {"path": "/srv/deb"}, "b": {"path": "/srv/debian"}}})


@pytest.mark.parametrize(
    ("keys", "word"),
    [
        ({"public_key": None}, "public_key"),
        ({"public_key": "0F" * 32}, "public key"),
        ({"parents": [], "mode": "atomic"}, "copies"),
        ({"work": "/srv/debian/.work"}, "inside path"),
        ({"streams": 5}, "4"),
        ({"keep": ["devices"]}, "keep"),
        ({"bandwidth": [{"start": "25:00", "per_second": "1MB"}]}, "time of day"),
        ({"bandwidth": [{"per_second": 5}]}, "size"),
        ({"deletes": {"share": 0.5}}, "share"),
        ({"exclude": ["+ x"]}, "another rule"),
        ({"push": {"away": {"to": "m.example:relative"}}}, "USER@HOST"),
    ],
)
def test_keys_of_a_tree_that_are_refused(tmp_path: Path, keys: dict[str, Any], word: str) -> None:
    found = faults(tmp_path, tree(**keys))
    assert any(word in place + " " + what for place, what in found), found


@pytest.mark.parametrize(
    ("parent", "word"),
    [
        ({"url": "https://x.example"}, "token_file"),
        ({"transport": "ssh"}, "needs `place`"),
        ({"transport": "rsyncd", "place": "u@h:/p"}, "does not fit"),
        ({"transport": "ssh", "place": "rsync://h/m"}, "does not fit"),
        ({"transport": "ssh", "place": "u@h:/p; rm -rf /"}, "neither"),
        ({"transport": "ssh", "place": "-oProxyCommand:/p"}, "neither"),
    ],
)
def test_parents_that_are_refused(tmp_path: Path, parent: dict[str, Any], word: str) -> None:
    found = faults(tmp_path, COPY | {"parents": {"tokyo": parent}})
    assert any(word in what for _, what in found), found


def test_plain_parents(tmp_path: Path) -> None:
    parents = {"tokyo": {"transport": "rsyncd", "place": "rsync://m.example:874/debian/main"}}
    config = read(tmp_path, COPY | {"parents": parents})
    assert is_plain(config.parents["tokyo"])
    assert not is_plain(read(tmp_path, COPY).parents["tokyo"])


def test_tokens_are_not_sent_in_the_clear(tmp_path: Path) -> None:
    child = {"children": {"e": {"token_sha256": "a" * 64}}}
    assert [place for place, _ in faults(tmp_path, ORIGIN | child | {"listen": ["192.0.2.1:8730"]})] == ["listen[0]"]
    read(tmp_path, ORIGIN | child | {"listen": ["127.0.0.1:8730", "[::1]:8730"]})
    assert [place for place, _ in faults(tmp_path, ORIGIN | {"listen": ["127.0.0.1:8730"]})] == ["listen"]


def test_children_have_trees_that_are_there(tmp_path: Path) -> None:
    child = {"children": {"e": {"token_sha256": "a" * 64, "trees": ["debian", "fedora"]}}}
    assert [place for place, _ in faults(tmp_path, ORIGIN | child)] == ["children.e.trees[1]"]


def test_work_directory_is_beside_the_tree(tmp_path: Path) -> None:
    config = read(tmp_path, COPY)
    assert work_directory(config.trees["debian"]) == "/srv/.debian.syncd"
    assert work_directory(read(tmp_path, tree(work="/srv/w")).trees["debian"]) == "/srv/w"


def test_two_copies_of_one_tree_side_by_side_have_work_directories_of_their_own(tmp_path: Path) -> None:
    trees = [read(tmp_path, tree(path=path)).trees["debian"] for path in ("/srv/tokyo", "/srv/osaka/")]
    assert [work_directory(t) for t in trees] == ["/srv/.tokyo.syncd", "/srv/.osaka.syncd"]


@pytest.mark.parametrize(("text", "minute"), [("00:00", 0), ("08:30", 510), ("24:00", 1440)])
def test_clock(text: str, minute: int) -> None:
    assert parse_clock(text) == minute


@pytest.mark.parametrize("text", ["24:01", "8:30", "12:60", "", "noon", "12:30 "])
def test_clock_that_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="time of day"):
        parse_clock(text)


def test_bandwidth_window(tmp_path: Path) -> None:
    rule = {"start": "22:00", "end": "06:00", "days": ["sat", "sun"], "per_second": "2MiB"}
    (found,) = read(tmp_path, tree(bandwidth=[rule])).trees["debian"].bandwidth
    assert found.window() == (1320, 360, frozenset({5, 6}))
    assert found.per_second == 2 << 20


def test_the_example_is_good_and_shows_every_section() -> None:
    file = Path(__file__).parents[2] / "configs/syncd.example.yaml"
    config = read_sync_config(file)
    roles = {name: bool(found.parents) for name, found in config.trees.items()}
    assert roles == {"debian": True, "pypi": True, "models": False}
    written = yaml.safe_load(file.read_text())
    assert set(type(config).model_fields) == set(written)
