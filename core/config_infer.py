"""Typed configuration of the API gateway: what may stand in local_infer's YAML file.

Same rules as `core.config`: unknown keys are refused, times, sizes and shares need a unit, everything is frozen. Reading
the file is in `io_config_infer.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, StringConstraints, model_validator

from core.config import Address, Listen, Metrics, Name, Section, Steering, Tls
from core.units import Duration, Share, Size

ModelName = Annotated[str, StringConstraints(pattern=r"^[!-~]{1,128}$")]
"""What stands in the `model` field of a request; it must not begin with `local/` or `cache/`, which are our marks."""

HttpUrl = Annotated[str, StringConstraints(pattern=r"^https?://[!-~]+$", max_length=2048)]
HeaderName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9-]{1,64}$")]
HeaderValue = Annotated[str, StringConstraints(pattern=r"^[ -~]{0,1024}$")]

StepName = Literal["upstream", "cache", "stale", "retrieval", "generation"]
Provider = Literal["tensorrt", "cuda", "rocm", "openvino", "cpu"]


class ApiKey(Section):
    """A client of the gateway."""

    token_sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the key, from `local-infer new-key`")
    tenant: Name | None = Field(default=None, description="whose answers it may share; default: only its own")
    rate: int = Field(default=0, ge=0, le=10_000_000, description="requests per minute; 0: no limit")
    concurrency: int = Field(default=0, ge=0, le=100_000, description="requests under way at once; 0: no limit")
    models: list[ModelName] = Field(default_factory=list, max_length=256, description="models it may use; empty: all")
    background: bool = Field(default=False, description="its requests go behind those of other keys at local models")


class GatewayLimits(Section):
    """What one client may ask of the gateway."""

    body: Size = Field(default=8 << 20, ge=1024, le=256 << 20, description="largest request body")
    header_time: Duration = Field(default=10.0, gt=0, le=300, description="a request must be here whole within this")
    idle: Duration = Field(default=75.0, gt=0, le=3600, description="an idle connection is closed after this")
    requests: int = Field(default=1024, ge=1, le=100_000, description="requests under way at once, over all clients")
    share: Share = Field(
        default=0.5, gt=0, description="of `requests`, what a key without `concurrency` may take while others ask too"
    )
    total: Duration = Field(default=600.0, gt=0, le=86400, description="longest answer, streams included")


class Upstream(Section):
    """An API that requests are forwarded to."""

    url: HttpUrl = Field(description="its base URL up to and with /v1")
    key_file: str | None = Field(default=None, min_length=1, description="file with its API key, mode 0600")
    key_header: HeaderName = Field(default="Authorization", description="header of the key; other names get it bare")
    headers: dict[HeaderName, HeaderValue] = Field(default_factory=dict, description="headers set on every request")
    models: dict[ModelName, ModelName] = Field(
        default_factory=dict, description="client's model -> its name there; empty: every model, name unchanged"
    )
    preference: int = Field(default=100, ge=0, le=1000, description="local preference, higher wins before RTT")
    cost: int = Field(default=0, ge=0, le=1_000_000, description="lower wins between upstreams of equal RTT")
    connections: int = Field(default=256, ge=1, le=10_000, description="open connections at most")
    warm: int = Field(default=1, ge=0, le=64, description="idle connections kept open")
    http2: bool = Field(default=False, description="HTTP/2, worth it for far upstreams (needs the `infer` extra)")
    ca_file: str | None = Field(default=None, min_length=1, description="PEM file to trust instead of the system's")
    source: Address | None = Field(default=None, description="local address to connect from")
    probe: str = Field(default="/models", pattern=r"^/[!-~]*$", max_length=256, description="asked when idle or down")


class Breaker(Section):
    """When an upstream is left alone for a while."""

    error_share: Share = Field(default=0.5, gt=0, description="opens above this share of failures")
    least: int = Field(default=5, ge=1, le=1000, description="and only with this many requests in the window")
    window: Duration = Field(default=10.0, gt=0, le=3600, description="time the share is taken over")
    open_for: Duration = Field(default=5.0, gt=0, le=3600, description="first time-out; doubles up to `open_most`")
    open_most: Duration = Field(default=300.0, gt=0, le=86400, description="longest time-out")
    slow_factor: float = Field(default=4.0, ge=1.5, le=100, description="outlier: median TTFB above this x the others'")

    @model_validator(mode="after")
    def _ordered(self) -> Breaker:
        if self.open_most < self.open_for:
            raise ValueError(
                f"open_most {self.open_most:g}s is shorter than open_for {self.open_for:g}s: make it longer"
            )
        return self


class Routing(Section):
    """How upstreams are chosen, waited for and given up."""

    connect: Duration = Field(default=3.0, gt=0, le=60, description="time to connect, TLS included")
    first_byte: Duration = Field(default=30.0, gt=0, le=600, description="streams: from the request to the first event")
    whole: Duration = Field(
        default=300.0, gt=0, le=3600, description="other answers: from the request to the first byte"
    )
    between_chunks: Duration = Field(default=30.0, gt=0, le=600, description="longest pause within a stream")
    give_up: Duration = Field(
        default=5.0, gt=0, le=600, description="no upstream reached (or TCP peer silent) for this: next step"
    )
    attempts: int = Field(default=3, ge=1, le=10, description="upstreams tried for one request")
    retry_budget: Share = Field(default=0.2, description="retries per request, over the last 10 s")
    longest_retry_after: Duration = Field(
        default=2.0, ge=0, le=600, description="a Retry-After up to this is waited for, a longer one counts as down"
    )
    hedge: Share = Field(default=0.0, description="second requests after the p95, per request; 0%: off")
    explore: Share = Field(
        default=0.01, description="requests to upstreams whose times are not known, to know them; 0%: none"
    )
    probe_every: Duration = Field(default=10.0, ge=0.1, le=3600, description="upstreams without traffic are probed")
    breaker: Breaker = Breaker()
    steering: Steering = Field(
        default_factory=lambda: Steering.model_validate({"rise": 2, "hold_down": "2s", "dwell": "10s"}),
        description="how measured TTFB becomes an order",
    )


class Cache(Section):
    """Exact answers, kept."""

    memory: Size = Field(default=64 << 20, ge=0, le=64 << 30, description="bytes in memory; 0B: none")
    disk: Size = Field(default=1 << 30, ge=0, le=1 << 44, description="bytes in SQLite under state_dir; 0B: none")
    redis: str | None = Field(
        default=None, pattern=r"^(rediss?|unix)://[!-~]+$", description="Redis instead of SQLite; password in the file"
    )
    redis_password_file: str | None = Field(default=None, min_length=1, description="file with it, mode 0600")
    max_entry: Size = Field(default=1 << 20, ge=1024, le=1 << 28, description="larger answers are not kept")
    fresh_for: Duration = Field(default=3600.0, ge=0, le=31_536_000, description="served without asking an upstream")
    revalidate_for: Duration = Field(default=600.0, ge=0, le=31_536_000, description="then: served, and asked behind")
    stale_for: Duration = Field(default=604800.0, ge=0, le=31_536_000, description="then: only when upstreams fail")
    sampled: bool = Field(default=False, description="keep answers with temperature above 0 too, without opting in")
    shared: Share | None = Field(
        default=None, description="Cache-Control: public with this share of fresh_for as max-age; default: private"
    )
    warm_file: str | None = Field(default=None, min_length=1, description="JSON lines of requests to fetch at start")
    neighbours: list[HttpUrl] = Field(
        default_factory=list, max_length=16, description="gateways whose hot keys we take"
    )
    neighbour_key_file: str | None = Field(default=None, min_length=1, description="file with the key they know us by")
    prefetch: Share = Field(default=0.02, description="upstream requests that may be refreshes ahead or follow-ups")


class Retrieval(Section):
    """Answers from the operator's FAQ and from verified earlier answers."""

    index: str = Field(min_length=1, description="folder written by `local-infer build`")
    embedder: str | None = Field(default=None, min_length=1, description="folder with tokenizer.json and model.onnx")
    threshold: Share = Field(default=0.35, gt=0, description="least similarity where an entry has not learned its own")
    margin: Share = Field(default=0.05, description="the best must lead the next different answer by this")
    longest: int = Field(default=256, ge=8, le=4096, description="characters; longer questions are not looked up")
    proofs: int = Field(default=3, ge=0, le=1000, description="agreeing shadow answers before a kept answer is used")
    keep: int = Field(default=20_000, ge=0, le=1_000_000, description="verified earlier answers kept; 0: only the FAQ")


class Generation(Section):
    """The on-box model."""

    model: str = Field(min_length=1, description="folder in the form of onnxruntime-genai")
    name: Name = Field(default="model", description="answers say `local/NAME`")
    slots: int = Field(default=1, ge=1, le=16, description="generations at once, a process each")
    queue: int = Field(default=16, ge=0, le=10_000, description="requests that may wait; more get the next step")
    max_tokens: int = Field(default=512, ge=1, le=32768, description="most tokens of one answer")
    context: int = Field(default=2048, ge=128, le=131072, description="most tokens of prompt and answer")
    time: Duration = Field(default=60.0, gt=0, le=3600, description="an answer that takes longer is cut: length")
    wait: Duration = Field(default=10.0, gt=0, le=600, description="longest wait in the queue")
    unload_after: Duration = Field(default=900.0, gt=0, le=86400, description="unused for so long: memory given back")
    preload: bool = Field(default=True, description="load before ready, not at the first request")


class LocalModels(Section):
    """How models run on this host."""

    providers: list[Provider] = Field(
        default_factory=lambda: list[Provider](("cpu",)),
        min_length=1,
        max_length=5,
        description="in order; those not installed are left out",
    )
    threads: int = Field(default=1, ge=1, le=256, description="threads within one model run")
    batch: int = Field(default=16, ge=1, le=256, description="embedder calls run together at most")
    memory_floor: Size = Field(default=256 << 20, ge=0, description="less available than this: models are unloaded")


class Ladder(Section):
    """What answers when, and how it says so."""

    steps: list[StepName] = Field(
        default_factory=lambda: list(get_args(StepName)),
        min_length=1,
        max_length=5,
        description="steps in use; their order is fixed",
    )
    prefix: dict[Literal["stale", "retrieval", "generation"], str] = Field(
        default_factory=dict, description="visible text before an answer of that step, such as `[offline answer] `"
    )
    retry_after: Duration = Field(default=10.0, ge=1, le=3600, description="Retry-After when no step answers")
    shadow: Share = Field(default=0.01, description="healthy traffic also answered by the lower steps, unseen")
    record: int = Field(
        default=0, ge=0, le=1_000_000, description="recent requests kept WITH CONTENT for `local-infer drill`; 0: none"
    )


class AccessLog(Section):
    """One line a request, without content."""

    enabled: bool = Field(default=True, description="write it")
    content: bool = Field(default=False, description="with questions and answers: personal data, mind the law")


class Otlp(Section):
    """Traces and metrics to an OpenTelemetry collector."""

    endpoint: HttpUrl = Field(description="OTLP/HTTP base URL of the collector, such as http://127.0.0.1:4318")
    headers_file: str | None = Field(
        default=None, min_length=1, description="file with headers for it, `Name: value` lines, mode 0600"
    )
    ca_file: str | None = Field(default=None, min_length=1, description="PEM file to trust instead of the system's")
    sample: Share = Field(default=0.1, description="traces recorded of requests that belong to no client's trace")
    service: Name = Field(default="local-infer", description="service.name of what is told")
    every: Duration = Field(default=15.0, ge=1, le=3600, description="metrics are told this often")


class InferConfig(Section):
    """The gateway's configuration file."""

    version: Literal[1] = Field(description="of the file's form")
    node: Name = Field(default="local-infer", description="this gateway's name in Cache-Status and metrics")
    state_dir: str = Field(min_length=1, description="where caches and learned thresholds are kept")
    listen: list[Listen] = Field(min_length=1, max_length=16, description="where clients reach it")
    tls: Tls | None = None
    keys: dict[Name, ApiKey] = Field(default_factory=dict, max_length=10_000, description="clients")
    anonymous: bool = Field(default=False, description="serve requests without a key too, as one tenant")
    limits: GatewayLimits = GatewayLimits()
    upstreams: dict[Name, Upstream] = Field(default_factory=dict, max_length=64)
    routing: Routing = Routing()
    cache: Cache = Cache()
    retrieval: Retrieval | None = None
    generation: Generation | None = None
    models: LocalModels = LocalModels()
    ladder: Ladder = Ladder()
    access_log: AccessLog = AccessLog()
    otlp: Otlp | None = None
    metrics: Metrics = Metrics()


Finding = tuple[tuple[str | int, ...], str]

_OWN_MARKS = ("local/", "cache/")


def find_contradictions(raw: Mapping[str, Any]) -> list[Finding]:
    """(path, what) of sections of the raw file that contradict each other; faults of single fields are told elsewhere."""
    return [*_clients(raw), *_upstreams(raw), *_steps(raw)]


def _mapping(raw: Any, key: str) -> Mapping[str, Any]:
    value = raw.get(key) if isinstance(raw, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def _clients(raw: Mapping[str, Any]) -> Iterator[Finding]:
    keys = _mapping(raw, "keys")
    if not keys and raw.get("anonymous") is not True:
        yield ("keys",), "nobody could use this gateway: give a key (`local-infer new-key`), or set anonymous: true"
    seen: dict[str, str] = {}
    for name, key in keys.items():
        digest = key.get("token_sha256") if isinstance(key, Mapping) else None
        if isinstance(digest, str) and seen.setdefault(digest, name) != name:
            yield ("keys", name, "token_sha256"), f"is the same key as {seen[digest]!r}: give each client its own"


def _upstreams(raw: Mapping[str, Any]) -> Iterator[Finding]:
    for name, upstream in _mapping(raw, "upstreams").items():
        for model in _mapping(upstream, "models"):
            if isinstance(model, str) and model.startswith(_OWN_MARKS):
                yield ("upstreams", name, "models", model), "local/ and cache/ mark our own answers: use another name"
        if isinstance(upstream, Mapping):
            yield from _base_url(("upstreams", name, "url"), upstream.get("url"))
    cache = _mapping(raw, "cache")
    neighbours = cache.get("neighbours")
    for i, url in enumerate(neighbours if isinstance(neighbours, list) else ()):
        yield from _base_url(("cache", "neighbours", i), url)
    endpoint = _mapping(raw, "otlp").get("endpoint")
    if isinstance(endpoint, str) and "@" in endpoint:
        yield ("otlp", "endpoint"), "must not hold a password: put a header into headers_file"
    redis = cache.get("redis")
    if isinstance(redis, str) and "@" in redis:
        yield ("cache", "redis"), "must not hold a password: put it into redis_password_file"


def _base_url(path: tuple[str | int, ...], url: Any) -> Iterator[Finding]:
    """What a URL that paths are added to must not have. Nothing of it is shown: it may hold a password."""
    if not isinstance(url, str):
        return
    if "@" in url.partition("//")[2].partition("/")[0]:
        key = "neighbour_key_file" if path[0] == "cache" else "key_file"
        yield path, f"must not hold a name or a password: put the key into {key}"
    if "?" in url or "#" in url:
        yield path, "must not have a query (?) or a fragment (#): paths are added to its end"


def _steps(raw: Mapping[str, Any]) -> Iterator[Finding]:
    steps = _mapping(raw, "ladder").get("steps")
    named = steps if isinstance(steps, list) else []
    for step in ("retrieval", "generation"):
        if step in named and not isinstance(raw.get(step), Mapping):
            yield ("ladder", "steps", named.index(step)), f"there is no section {step!r}: add it, or leave the step out"
    for i, step in enumerate(named):
        if step in named[:i]:
            yield ("ladder", "steps", i), f"{step!r} is listed twice"
    has_upstream = bool(_mapping(raw, "upstreams"))
    if not has_upstream and not any(isinstance(raw.get(s), Mapping) for s in ("retrieval", "generation")):
        yield ("upstreams",), "nothing could ever answer: add an upstream, retrieval or generation"
