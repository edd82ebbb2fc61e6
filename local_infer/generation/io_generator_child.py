"""The process that generates: `python -m local_infer.generation.io_generator_child`, one for each slot of the gateway.

onnxruntime-genai keeps the interpreter's lock for as long as its calls last, so it would stop the gateway if it lived
there; and a process can be ended for its memory, or because it hangs, without the gateway. Messages come on standard input
and go out on standard output (`child_wire.py`). No threads: between two tokens it looks whether something has come.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import re
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from core.errors import NearpathError
from local_infer.generation.child_wire import (
    Cancel,
    Done,
    Generate,
    Load,
    Message,
    Piece,
    Reader,
    Ready,
    Refused,
    WireError,
    pack,
)
from local_infer.generation.io_onnx import load_onnxruntime, turn_telemetry_off
from local_infer.generation.stopping import Stopper

PREFILL_TOKENS = 64
"""Prompt tokens read in one call: a call cannot be cancelled, and on one slow core this many take some 0.5 s at most."""

SCHEMA_S = 10.0
"""One token under a schema. Some schemas (intersections of patterns) never come to an end within the library, and take
30 MB more each second; a call of the library can be ended in no other way than with the process."""

_LATE_S = 0.5
_TRIAL_SCHEMA = '{"type":"object","properties":{},"additionalProperties":false}'
_PR_SET_PDEATHSIG = 1

# Word of the configuration: (genai's name, onnxruntime's name).
_PROVIDERS = {
    "tensorrt": ("NvTensorRtRtx", "NvTensorRTRTXExecutionProvider"),
    "cuda": ("cuda", "CUDAExecutionProvider"),
    "rocm": ("rocm", "ROCMExecutionProvider"),
    "openvino": ("OpenVINO", "OpenVINOExecutionProvider"),
}


class Refusal(Exception):
    """A request that is not done; see `child_wire.Refused`."""

    def __init__(self, why: str, what: str) -> None:
        super().__init__(what)
        self.why = why


class Wire:
    """Messages from and to the gateway. When the gateway is gone, so is this process."""

    def __init__(self, source: int, sink: int) -> None:
        self._source, self._sink = source, sink
        self._reader = Reader()
        self._come: list[Message] = []

    def send(self, message: Message) -> None:
        """Write one message, whole."""
        left = memoryview(pack(message))
        while left:
            left = left[os.write(self._sink, left) :]

    def receive(self) -> Message:
        """The next message, waited for."""
        while not self._come:
            self._read()
        return self._come.pop(0)

    def is_cancelled(self, id: int) -> bool:
        """Whether the gateway wants no more of this generation; does not wait."""
        while select.select([self._source], [], [], 0)[0]:
            self._read()
        return any(isinstance(message, Cancel) and message.id == id for message in self._come)

    def _read(self) -> None:
        data = os.read(self._source, 1 << 16)
        if not data:
            sys.exit(0)
        self._come += self._reader.feed(data)


class Model:
    """A loaded model."""

    def __init__(self, genai: Any, load: Load) -> None:
        self._genai = genai
        folder = Path(load.folder)
        self._model, self.provider = _open(genai, load)
        self._tokenizer = genai.Tokenizer(self._model)
        self._ends = frozenset(int(token) for token in self._tokenizer.eos_token_ids)
        self.context = min(load.context, _context_of(folder))
        self._specials = _specials_of(folder)
        self.guidance = self._warm_up()

    def _warm_up(self) -> bool:
        """Run every part once; whether the library can be held to a schema."""
        ids = self._tokenizer.encode("warm up")
        generator = self._generator(ids, len(ids) + 2, {}, None)
        generator.append_tokens(ids)
        generator.generate_next_token()
        try:
            self._generator(ids, len(ids) + 2, {}, _TRIAL_SCHEMA)
        except Refusal:
            return False
        return True

    def encode(self, request: Generate) -> Any:
        """The tokens of the prompt."""
        if request.messages is None:
            return self._tokenizer.encode(request.prompt or "")
        # Nobody may end their own turn and speak as the system: marks of the template are taken out of what people wrote.
        # A space takes their place: what is around must not become a mark by that.
        messages = [{**m, "content": self._specials.sub(" ", m["content"])} for m in request.messages]
        try:
            text = self._tokenizer.apply_chat_template(
                json.dumps(messages, ensure_ascii=False), add_generation_prompt=True
            )
        except Exception as error:
            # The library raises RuntimeError for all; a template may also refuse an order of roles in its own words.
            raise Refusal("template", str(error)) from None
        return self._tokenizer.encode(text)

    def generate(self, request: Generate, is_cancelled: Callable[[], bool], show: Callable[[str], None]) -> Done:
        """Generate, and `show` text as it comes. Raises Refusal."""
        began_s = time.monotonic()
        ids = self.encode(request)
        if len(ids) == 0:
            raise Refusal("empty", "the prompt has no tokens")
        room = self.context - len(ids)
        if room < 1:
            raise Refusal("too long", f"the prompt has {len(ids)} tokens, {self.context} fit")
        most = min(request.max_tokens, room)
        with _bounded(request):
            return self._generate(request, ids, most, began_s, is_cancelled, show)

    def _generate(
        self,
        request: Generate,
        ids: Any,
        most: int,
        began_s: float,
        is_cancelled: Callable[[], bool],
        show: Callable[[str], None],
    ) -> Done:
        generator = self._generator(ids, len(ids) + most, _search_options(request), request.schema)
        stopper, stream = Stopper(request.stops), self._tokenizer.create_stream()

        def over() -> str:
            return "cancelled" if is_cancelled() else "length" if time.monotonic() - began_s > request.time_s else ""

        finish = ""
        for start in range(0, len(ids), PREFILL_TOKENS):
            finish = over()
            if finish:
                break
            # A long prompt takes its time without any fault of the schema.
            _begin_step(request)
            generator.append_tokens(ids[start : start + PREFILL_TOKENS])
        count = 0
        while not finish:
            _begin_step(request)
            generator.generate_next_token()
            token = int(generator.get_next_tokens()[0])
            if token in self._ends:
                finish = "stop"
                break
            count += 1
            if text := stopper.feed(stream.decode(token)):
                show(text)
            finish = "stop" if stopper.stopped else over()
            if not finish and (count >= most or generator.is_done()):
                finish = "length"
        if finish != "cancelled" and (text := stopper.end()):
            show(text)
        return Done(request.id, finish, len(ids), count, time.monotonic() - began_s)

    def _generator(self, ids: Any, max_length: int, options: Mapping[str, Any], schema: str | None) -> Any:
        params = self._genai.GeneratorParams(self._model)
        params.set_search_options(max_length=max_length, **options)
        if schema is None:
            return self._genai.Generator(self._model, params)
        try:
            params.set_guidance("json_schema", schema)
            return self._genai.Generator(self._model, params)
        except Exception as error:
            # An answer that was not held to its schema is worse than none.
            raise Refusal("schema", str(error)) from None


@contextmanager
def _bounded(request: Generate) -> Iterator[None]:
    """No step of a request with a schema may take longer than SCHEMA_S: the kernel ends this process (SIGALRM) then."""
    _begin_step(request)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _begin_step(request: Generate) -> None:
    if request.schema is not None:
        signal.setitimer(signal.ITIMER_REAL, min(SCHEMA_S, request.time_s + _LATE_S))


def _open(genai: Any, load: Load) -> tuple[Any, str]:
    """(model, effective provider): the first of the wanted ones that is installed and works; last the CPU."""
    before_cpu = load.providers[: load.providers.index("cpu")] if "cpu" in load.providers else load.providers
    # Who only wants the CPU is spared the runtime's own bindings: 15 MB, and half of the time to start.
    installed = load_onnxruntime().get_available_providers() if before_cpu else []
    tries = [*(word for word in before_cpu if _PROVIDERS[word][1] in installed), "cpu"]
    sessions = {
        "intra_op_num_threads": load.threads,
        "inter_op_num_threads": 1,
        # Spinning threads would take the cores from the gateway while they wait.
        "session.intra_op.allow_spinning": "0",
        "session.inter_op.allow_spinning": "0",
    }
    problem = ""
    for word in tries:
        try:
            config = genai.Config(load.folder)
            config.clear_providers()
            if word != "cpu":
                config.append_provider(_PROVIDERS[word][0])
            config.overlay(json.dumps({"model": {"decoder": {"session_options": sessions}}}))
            return genai.Model(config), word
        except Exception as error:
            # The library raises RuntimeError for all, a driver that is missing among them: the next provider is tried.
            problem = str(error)
            print(f"generation: provider {word} does not work: {problem}", file=sys.stderr, flush=True)
    raise Refusal("load", problem)


def _context_of(folder: Path) -> int:
    return int(json.loads((folder / "genai_config.json").read_text("utf-8"))["model"]["context_length"])


def _specials_of(folder: Path) -> re.Pattern[str]:
    """Matches the marks of the tokenizer, such as `<|im_end|>`; nothing when they cannot be read."""
    try:
        tokens = json.loads((folder / "tokenizer.json").read_text("utf-8")).get("added_tokens", [])
        names = [token["content"] for token in tokens if token.get("special") and token.get("content")]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        names = []
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or r"(?!)")


def _search_options(request: Generate) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if request.temperature is not None:
        options["do_sample"] = request.temperature > 0
        if request.temperature > 0:
            options["temperature"] = request.temperature
    if request.top_p is not None and request.top_p > 0 and request.temperature != 0:
        options |= {"do_sample": True, "top_p": request.top_p}
    if request.seed is not None:
        options["random_seed"] = request.seed
    return options


def serve(wire: Wire) -> None:
    """Load what the gateway says, then generate until it is gone."""
    load = wire.receive()
    if not isinstance(load, Load):
        raise WireError("Load must come first")
    try:
        model = Model(_load_genai(), load)
    except (Refusal, NearpathError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        wire.send(Refused(0, "load", _first_line(error)))
        return
    wire.send(Ready(model.provider, model.context, model.guidance))
    while True:
        message = wire.receive()
        if isinstance(message, Generate):
            _answer(wire, model, message)


def _answer(wire: Wire, model: Model, request: Generate) -> None:
    try:
        done = model.generate(
            request, lambda: wire.is_cancelled(request.id), lambda text: wire.send(Piece(request.id, text))
        )
    except Refusal as refusal:
        wire.send(Refused(request.id, refusal.why, _first_line(refusal)))
    except RuntimeError as error:
        # What the library raises when a run fails; the model can still be used.
        wire.send(Refused(request.id, "failed", _first_line(error)))
    else:
        wire.send(done)


def _load_genai() -> Any:
    turn_telemetry_off()
    try:
        genai = importlib.import_module("onnxruntime_genai")
    except ImportError as error:
        raise NearpathError(
            f"onnxruntime-genai cannot be loaded ({error})", "install nearpath with the `infer` extra"
        ) from None
    with suppress(AttributeError):  # versions before 0.12 do not have it, and send nothing
        genai.disable_telemetry_events()
    return genai


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:500]


def _be_expendable() -> None:
    """Die with the gateway, go first when memory is short, and come after the gateway at the cores."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("800", "ascii")
    with suppress(OSError):
        os.nice(5)


def main(arguments: Sequence[str]) -> None:
    """Serve on standard input and output; `arguments` has the gateway's process id."""
    _be_expendable()
    if arguments and os.getppid() != int(arguments[0]):
        sys.exit(0)  # the gateway died before it could be followed
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        # They mean the gateway, of the same terminal or unit; it lets answers end first, and then ends us itself.
        signal.signal(number, signal.SIG_IGN)
    # Whatever a library prints must not come between messages.
    sink = os.dup(1)
    os.dup2(2, 1)
    with suppress(BrokenPipeError, KeyboardInterrupt):
        serve(Wire(0, sink))


if __name__ == "__main__":
    main(sys.argv[1:])
