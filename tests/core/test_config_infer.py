"""The gateway's configuration file: the shipped example, paths, defaults, and faults with their places."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.config_infer import InferConfig
from core.errors import ConfigError
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
        ("otlp: {endpoint: 'collector:4318'}\n", "otlp.endpoint", "should match pattern"),
        ("otlp: {endpoint: 'http://u:p@collector:4318'}\n", "otlp.endpoint", "put a header into headers_file"),
    ],
)
def test_faults(tmp_path: Path, more: str, path: str, what: str) -> None:
    [(line, where, text)] = faults(tmp_path, LEAST + more)
    assert (line, where) == (LEAST.count("\n") + 1, path)
    assert what in text


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
