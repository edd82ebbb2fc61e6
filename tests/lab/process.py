"""Real programs in the lab: started in a node's namespace, their output kept, ended by pid."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from tests.lab import netns
from tests.lab.topology import LabError

STOP_S = 5.0  # from SIGTERM to SIGKILL at the end of a scenario
LOG_TAIL_LINES = 40
POLL_S = 0.02

Result = TypeVar("Result")


class LabProcess:
    """A program that runs on a node. Its standard output and error go, in order, to `log`."""

    def __init__(self, node: str, name: str, popen: subprocess.Popen[bytes], log: Path) -> None:
        self.node = node
        self.name = name
        self.log = log
        self.ended_by_test = False
        self._popen = popen

    @property
    def pid(self) -> int:
        """Also the id of its process group. nsenter and setsid execute the program in their own place."""
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs; minus the signal's number if a signal ended it."""
        return self._popen.poll()

    @property
    def alive(self) -> bool:
        return self.returncode is None

    def text(self) -> str:
        """All it has written so far."""
        return self.log.read_text(errors="replace")

    def tail(self) -> str:
        """State and last lines, for a failure's message."""
        state = "running" if self.alive else f"ended with {self.returncode}"
        lines = self.text().splitlines()
        cut = f" (last {LOG_TAIL_LINES} of {len(lines)} lines)" if len(lines) > LOG_TAIL_LINES else ""
        body = "\n".join(f"    {line}" for line in lines[-LOG_TAIL_LINES:]) or "    (no output)"
        return f"--- {self.name} on {self.node}, pid {self.pid}, {state}{cut}\n{body}"

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the program alone (SIGHUP, SIGSTOP, ...)."""
        self._popen.send_signal(number)

    def kill(self) -> None:
        """End it and its children at once (kill -9)."""
        self._end(signal.SIGKILL)
        self._popen.wait()

    def begin_end(self) -> None:
        """SIGTERM without waiting, so that several programs can end at the same time."""
        self._end(signal.SIGTERM)

    def terminate(self, timeout_s: float = STOP_S) -> int:
        """SIGTERM and wait; SIGKILL when it takes too long. Its return code."""
        self.begin_end()
        return self.finish_end(timeout_s)

    def finish_end(self, timeout_s: float = STOP_S) -> int:
        """The second half of `terminate`. Children that outlive it go with the namespace."""
        try:
            return self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._end(signal.SIGKILL)
            return self._popen.wait()

    def wait(self, timeout_s: float) -> int:
        """Wait for its own end; LabError with its log when it takes too long."""
        try:
            return self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise LabError(f"{self.name} still runs after {timeout_s} s\n{self.tail()}") from None

    def _end(self, number: signal.Signals) -> None:
        self.ended_by_test = True
        if self.alive:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, number)


def start(
    namespace: str,
    node: str,
    argv: Sequence[str | Path],
    *,
    name: str,
    log: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> LabProcess:
    """Start a program in a namespace. `env` is added to this process's environment."""
    with log.open("ab") as output:
        popen = subprocess.Popen(
            inside(namespace, argv),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment(env),
            cwd=cwd,
            start_new_session=True,
        )
    return LabProcess(node, name, popen, log)


def inside(namespace: str, argv: Sequence[str | Path]) -> list[str]:
    """The command line that runs `argv` in a namespace, under the same pid."""
    return ["nsenter", f"--net={netns.DIRECTORY / namespace}", "--", *(str(part) for part in argv)]


def environment(extra: Mapping[str, str] | None) -> dict[str, str]:
    """This process's environment with `extra`, and with output that is not held back in buffers."""
    return {**os.environ, "PYTHONUNBUFFERED": "1", **(extra or {})}


def wait_until(
    predicate: Callable[[], Result], timeout_s: float, what: str, processes: Sequence[LabProcess] = ()
) -> Result:
    """Call `predicate` until it returns something true, and return that.

    An AssertionError in it counts as "not yet". Fails with `what`, the last result and the logs of `processes`: when
    time is up, or as soon as one of them has ended by itself.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            result = predicate()
            last = f"last result: {result!r}"
        except AssertionError as error:
            result, last = None, f"last error: {error}"
        if result:
            return result
        ended = [process for process in processes if not process.alive and not process.ended_by_test]
        late = time.monotonic() >= deadline
        if ended or late:
            why = f"{ended[0].name} ended by itself with {ended[0].returncode}" if ended else f"{timeout_s} s are over"
            logs = "\n".join(process.tail() for process in processes)
            raise AssertionError(f"waited for: {what}; {why}; {last}\n{logs}")
        time.sleep(POLL_S)
