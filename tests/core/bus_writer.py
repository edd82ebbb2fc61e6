"""Publishes to a bus until it is killed; says what was acknowledged, one line per publish, on standard output.

Usage: bus_writer.py FILE FIRST_SEQUENCE; stream `s`, source `a`, bodies are the sequence numbers as text.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from core.bus import Record
from core.io_bus import EmbeddedBus
from core.io_clock import AnchoredClock


async def main(file: Path, first: int) -> None:
    bus = await EmbeddedBus.open(file, AnchoredClock())
    while True:
        # Three at a time, so that half a publish would be seen.
        done = await bus.publish("s", "a", [Record(n, str(n).encode()) for n in range(first, first + 3)])
        first = done.last_sequence + 1
        print(done.last_sequence, flush=True)


asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
