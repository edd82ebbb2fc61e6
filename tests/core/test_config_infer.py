"""The gateway's configuration file: the shipped example, paths, defaults, and faults with their places."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.config import AgentConfig, Config
from core.config_infer import InferConfig
from core.config_sync import SyncConfig
from core.errors import ConfigError
from core.io_config import _PATTERN_WORDS
from core.io_config_infer import read_infer_config

EXAMPLE = Path(__file__).parents[2] / "configs/local-infer.example.yaml"

LEAST = "version: 1\nstate_dir: state\nlisten: ['127.0.0.1:0']\nanonymous: true\nupstreams:\n  a: {url: 'http://127.0.0.1:1/v1'}\n"


def read(tmp_path: Path, text: str) -> InferConfig:
    file = tmp_path / "local-infer.yaml"
    file.write_text(text, "utf-8")
    return read_infer_config(file)


def faults(tmp_path: Path, text: str) -> list[tuple[int, str, str]]:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    return [(p.line, p.path, p.what) for p in caught.value.problems]


def test_the_shipped_example() -> None:
    config = read_infer_config(EXAMPLE)
    assert config.upstreams["east"].key_file == str(EXAMPLE.parent / "east.key")
    assert config.upstreams["west"].models == {"gpt-4o-mini": "small-chat"}
    assert (config.cache.memory, config.cache.fresh_for, config.routing.hedge) == (64 << 20, 3600.0, 0.0)
    assert config.keys["nightly-grading"].background
    assert (config.retrieval, config.generation) == (None, None)


def test_the_commented_sections_of_the_example_are_right_too(tmp_path: Path) -> None:
    text = EXAMPLE.read_text("utf-8")
    for line in ("retrieval:", "  index: faq-index", "generation:", "  model: models/small", "  name: small-instruct"):
        assert f"\n# {line}" in text
        text = text.replace(f"\n# {line}", f"\n{line}")
    config = read(tmp_path, text.replace("\n# tls:", "\ntls:"))
    assert config.retrieval is not None
    assert config.generation is not None
    assert config.tls is not None
    assert config.retrieval.index == str(tmp_path / "faq-index")
    assert config.generation.model == str(tmp_path / "models/small-instruct")
    assert config.tls.key == str(tmp_path / "server.key")


def test_least_file_and_paths(tmp_path: Path) -> None:
    config = read(tmp_path, LEAST + "cache: {warm_file: hot.jsonl}\n")
    assert config.state_dir == str(tmp_path / "state")
    assert config.cache.warm_file == str(tmp_path / "hot.jsonl")
    assert config.upstreams["a"].key_file is None
    assert config.routing.steering.rise == 2


def test_relative_retrieval_and_embedder_folders(tmp_path: Path) -> None:
    config = read(tmp_path, LEAST + "retrieval: {index: i, embedder: /e}\n")
    assert config.retrieval is not None
    assert (config.retrieval.index, config.retrieval.embedder) == (str(tmp_path / "i"), "/e")


@pytest.mark.parametrize(
    ("more", "path", "what"),
    [
        ("limits: {body: 100}\n", "limits.body", "is not a size"),
        ("routing: {hedge: 5}\n", "routing.hedge", "is not a share"),
        ("routing: {breaker: {open_for: 10s, open_most: 5s}}\n", "routing.breaker", "make it longer"),
        ("cache: {redis: 'redis://:word@127.0.0.1/0'}\n", "cache.redis", "must not hold a password"),
        ("ladder: {steps: [upstream, generation]}\n", "ladder.steps[1]", "there is no section 'generation'"),
        ("ladder: {steps: [upstream, cache, upstream]}\n", "ladder.steps[2]", "listed twice"),
        ("ladder: {prefix: {upstream: x}}\n", "ladder.prefix.upstream", "should be 'stale', 'retrieval'"),
        ("models: {providers: [azure]}\n", "models.providers[0]", "should be 'tensorrt'"),
        ("upstream: {}\n", "upstream", "is not a known key"),
        ("otlp: {endpoint: 'collector:4318'}\n", "otlp.endpoint", "must be a URL that begins with http://"),
        ("otlp: {endpoint: 'http://u:p@collector:4318'}\n", "otlp.endpoint", "put a header into headers_file"),
    ],
)
def test_faults(tmp_path: Path, more: str, path: str, what: str) -> None:
    [(line, where, text)] = faults(tmp_path, LEAST + more)
    assert (line, where) == (LEAST.count("\n") + 1, path)
    assert what in text


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("https://jo:pa55word@api.example/v1", "must not hold a name or a password: put the key into key_file"),
        ("https://pa55word@api.example/v1", "must not hold a name"),
        ("ftp://jo:pa55word@api.example/v1", "must be a URL that begins with http://"),
        ("https://api.example/v1?api-version=1", "must not have a query"),
        ("https://api.example/v1#x", "or a fragment"),
    ],
)
def test_what_an_upstreams_url_must_not_have(tmp_path: Path, url: str, what: str) -> None:
    text = LEAST.replace("http://127.0.0.1:1/v1", url)
    found = faults(tmp_path, text)
    assert {(line, path) for line, path, _said in found} == {(6, "upstreams.a.url")}
    said = " ".join(said for _line, _path, said in found)
    assert what in said
    assert "pa55" not in said
    neighbour = faults(tmp_path, LEAST + f"cache: {{neighbours: ['{url}']}}\n")
    assert {path for _line, path, _said in neighbour} == {"cache.neighbours[0]"}


def test_an_at_sign_in_a_path_is_no_password(tmp_path: Path) -> None:
    assert read(tmp_path, LEAST.replace("1/v1", "1/@team/v1")).upstreams["a"].url.endswith("/@team/v1")


def test_every_pattern_is_told_in_words() -> None:
    def patterns(node: Any) -> Iterator[str]:
        if isinstance(node, dict) and isinstance(node.get("pattern"), str):
            yield node["pattern"]
        for below in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            yield from patterns(below)

    models = (Config, AgentConfig, SyncConfig, InferConfig)
    found = {pattern for model in models for pattern in patterns(model.model_json_schema())}
    # Numbers with units and hashes have words of their own.
    assert {pattern for pattern in found if "[0-9" not in pattern} <= set(_PATTERN_WORDS), "pydantic would show it"


def test_a_bad_hash_names_the_command_that_makes_one(tmp_path: Path) -> None:
    [(_line, _path, what)] = faults(tmp_path, LEAST + "keys:\n  a: {token_sha256: sk-very-secret}\n")
    assert "`local-infer new-key`" in what


def test_own_marks_are_not_model_names(tmp_path: Path) -> None:
    text = LEAST.replace("/v1'}", "/v1', models: {local/x: y}}")
    assert [(path, "mark our own" in what) for _, path, what in faults(tmp_path, text)] == [
        ("upstreams.a.models['local/x']", True)
    ]


def test_a_gateway_that_nobody_can_use_or_that_can_never_answer(tmp_path: Path) -> None:
    text = "version: 1\nstate_dir: s\nlisten: ['127.0.0.1:0']\n"
    assert [path for _, path, _ in faults(tmp_path, text)] == ["keys", "upstreams"]


def test_one_key_for_two_clients_and_a_key_in_clear(tmp_path: Path) -> None:
    digest = "ab" * 32
    text = LEAST + f"keys:\n  a: {{token_sha256: {digest}}}\n  b: {{token_sha256: {digest}}}\n"
    assert [(path, "same key as 'a'" in what) for _, path, what in faults(tmp_path, text)] == [
        ("keys.b.token_sha256", True)
    ]
    [(_, path, what)] = faults(tmp_path, LEAST + "keys:\n  a: {token_sha256: sk-very-secret}\n")
    assert path == "keys.a.token_sha256"
    assert "secret" not in what
