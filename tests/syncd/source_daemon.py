"""python source_daemon.py ROOT STORE: a SourceTree until killed; tests kill it with -9."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from syncd.source.io_source import SourceTree


def main() -> None:
    source = SourceTree(os.fsencode(sys.argv[1]), Path(sys.argv[2]))
    source.start()
    print("ready", flush=True)
    source.run(threading.Event())


if __name__ == "__main__":
    main()
