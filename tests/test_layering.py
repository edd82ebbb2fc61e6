"""The two laws of docs/design.md, checked by AST: who may import whom, and IO only in io_*.py, main.py and nearpath/.

The checker proves itself first: each kind of offence is shown to it in a small source, and it must find exactly that.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tracked import ROOT, tracked_files

MAY_IMPORT: dict[str, frozenset[str]] = {
    "core": frozenset(),
    "policy": frozenset({"core"}),
    "dnsd": frozenset({"core", "policy"}),
    "probes": frozenset({"core"}),
    "syncd": frozenset({"core", "policy"}),
    "local_infer": frozenset({"core", "policy"}),
    "nearpath": frozenset({"core", "policy", "dnsd", "probes", "syncd", "local_infer"}),
}

MAX_LINES = 600
VAGUE_NAMES = frozenset({"utils", "util", "helpers", "helper", "manager", "base", "common", "misc"})

# What an engine may import of the standard library: the list is of what is allowed, so that nothing is forgotten.
PURE_STDLIB = frozenset(
    """
    __future__ abc ast array base64 binascii bisect bz2 calendar cmath collections colorsys contextlib copy csv
    dataclasses datetime decimal difflib enum errno fractions functools graphlib gzip hashlib heapq hmac html http
    io.BytesIO io.StringIO ipaddress itertools json keyword lzma
    math numbers operator re reprlib stat statistics string stringprep struct textwrap
    types typing unicodedata urllib.parse warnings weakref zipfile zlib zoneinfo
    """.split()  # noqa: SIM905 (as text it can be read)
)

# And of others. They parse, compute or count in memory; what of them reaches out is listed below, or left out here.
PURE_OTHERS = frozenset(
    """
    cryptography.exceptions cryptography.hazmat.primitives
    dns dnslib maxminddb numpy onnx.TensorProto onnx.checker onnx.helper onnx.numpy_helper
    prometheus_client.core prometheus_client.registry.Collector
    prometheus_client.CollectorRegistry prometheus_client.Counter prometheus_client.Gauge prometheus_client.Histogram
    pydantic pydantic_core scapy.contrib.mpls scapy.layers.inet.ICMP scapy.layers.inet.IP scapy.layers.inet.TCP
    scapy.layers.inet6.ICMPv6DestUnreach scapy.layers.inet6.ICMPv6EchoRequest scapy.layers.inet6.ICMPv6PacketTooBig
    scapy.layers.inet6.ICMPv6TimeExceeded scapy.layers.inet6.IPv6 scapy.packet typing_extensions yaml
    """.split()  # noqa: SIM905
)

IO_PARTS = frozenset(
    """
    dns.asyncbackend dns.asyncquery dns.asyncresolver dns.nameserver dns.query dns.resolver dns.xfr dnslib.client
    dnslib.intercept dnslib.proxy dnslib.server http.client http.cookiejar http.server
    """.split()  # noqa: SIM905
)

# Calls that reach the outside without an import, or through a module that is otherwise pure.
IO_CALLS = frozenset(
    """
    open input print breakpoint exec eval compile __import__
    datetime.datetime.now datetime.datetime.utcnow datetime.datetime.today datetime.date.today
    numpy.load numpy.save numpy.savez numpy.savez_compressed numpy.loadtxt numpy.savetxt numpy.fromfile
    numpy.genfromtxt numpy.memmap gzip.open bz2.open lzma.open gzip.GzipFile maxminddb.open_database
    dns.zone.from_file zipfile.ZipFile zipfile.PyZipFile
    """.split()  # noqa: SIM905
)


def is_shell(relative: Path) -> bool:
    """Whether the file-name law lets this module do IO."""
    return relative.parts[0] == "nearpath" or relative.name.startswith("io_") or relative.name == "main.py"


def module_name(relative: Path) -> str:
    parts = list(relative.with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def package_of(relative: Path) -> str:
    """The package that relative imports of this file start from."""
    return ".".join(relative.parent.parts)


def imports_of(tree: ast.AST, package: str) -> Iterator[tuple[int, str, str]]:
    """(line, dotted name, local name) of every import, also inside functions; relative ones made absolute."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, alias.asname or alias.name.partition(".")[0]
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                source = ".".join([*above, source] if source else above)
            for alias in node.names:
                yield node.lineno, f"{source}.{alias.name}", alias.asname or alias.name


def dotted(node: ast.expr, names: dict[str, str]) -> str:
    """The full name that an expression such as `np.random.rand` stands for; empty when it is something else."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute) and (above := dotted(node.value, names)):
        return f"{above}.{node.attr}"
    return ""


def covers(listed: frozenset[str], name: str) -> bool:
    parts = name.split(".")
    return any(".".join(parts[: i + 1]) in listed for i in range(len(parts)))


def find_arrows(source: str, relative: Path) -> list[str]:
    """Imports between our packages that the table does not allow."""
    own = relative.parts[0]
    found = []
    for line, name, _ in imports_of(ast.parse(source), package_of(relative)):
        other = name.partition(".")[0]
        if other in MAY_IMPORT and other != own and other not in MAY_IMPORT[own]:
            found.append(f"{relative}:{line}: {own} may not import {other}")
        if other in {"tests", "bench"}:
            found.append(f"{relative}:{line}: imports {other}, which is not shipped")
    return found


def is_our_shell(name: str) -> bool:
    """Whether an imported name of ours is a module that does IO, or lies in one."""
    parts = name.split(".")
    if parts[0] not in MAY_IMPORT:
        return False
    return any(part.startswith("io_") or part == "main" for part in parts[1:])


def is_foreign_io(name: str) -> bool:
    """Whether an imported name of others is not known to be pure."""
    if name.partition(".")[0] in MAY_IMPORT:
        return False
    if covers(IO_PARTS, name):
        return True
    return not covers(PURE_STDLIB | PURE_OTHERS, name)


def in_type_checking(tree: ast.Module) -> set[int]:
    """Lines under `if TYPE_CHECKING:`, which do not run."""
    lines: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for child in node.body:
                lines.update(range(child.lineno, (child.end_lineno or child.lineno) + 1))
    return lines


def in_memory(call: ast.Call, names: dict[str, str]) -> bool:
    """Whether a call that could open a file is handed bytes in memory instead, and shows it in the same place."""
    if any(dotted(argument, names) == "maxminddb.MODE_FD" for argument in call.args):
        return True  # such a reader takes an object that is already open; opening one would be found by itself
    first = call.args[0] if call.args else None
    return isinstance(first, ast.Call) and dotted(first.func, names) in {"io.BytesIO", "io.StringIO"}


def find_io(source: str, relative: Path) -> list[str]:
    """What a pure engine does that only a shell may do."""
    if is_shell(relative):
        return []
    tree = ast.parse(source)
    not_run = in_type_checking(tree)
    names: dict[str, str] = {}
    found = []
    for line, name, local in imports_of(tree, package_of(relative)):
        names[local] = name if local != name.partition(".")[0] else local
        if line in not_run:
            continue
        if is_our_shell(name):
            found.append((line, f"imports our IO module {name}"))
        elif is_foreign_io(name):
            found.append((line, f"imports {name}"))
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func, names)
        if name in IO_CALLS and not in_memory(node, names):
            found.append((node.lineno, f"calls {name}"))
        elif name.startswith("numpy.random."):
            # A generator that is handed in is fine, and so is one made from a seed that is handed in.
            seeded = name == "numpy.random.default_rng" and (node.args or node.keywords)
            if not seeded:
                found.append((node.lineno, f"calls {name} without a seed from outside"))
    return [f"{relative}:{line}: {what}" for line, what in sorted(found)]


def our_modules() -> list[Path]:
    return sorted(p.relative_to(ROOT) for package in MAY_IMPORT for p in (ROOT / package).rglob("*.py"))


# --- the checker finds what it must, and only that ---------------------------------------------------------------------

ENGINE = Path("policy/engine_sample.py")

BAD_IO = {
    "import time": "imports time",
    "import os.path": "imports os.path",
    "import time as t": "imports time",
    "from time import monotonic": "imports time.monotonic",
    "def f():\n    import random": "imports random",
    "from concurrent.futures import ThreadPoolExecutor": "imports concurrent.futures.ThreadPoolExecutor",
    "from http import client": "imports http.client",
    "import logging": "imports logging",
    "import somebodys_package": "imports somebodys_package",
    "from urllib import request": "imports urllib.request",
    "from urllib.request import urlopen": "imports urllib.request.urlopen",
    "import dnslib.server": "imports dnslib.server",
    "from scapy.all import IP": "imports scapy.all.IP",
    "from scapy.sendrecv import sr1": "imports scapy.sendrecv.sr1",
    "import dns.query": "imports dns.query",
    "open('x')": "calls open",
    "print('x')": "calls print",
    "import datetime\ndatetime.datetime.now()": "calls datetime.datetime.now",
    "from datetime import datetime as D\nD.now()": "calls datetime.datetime.now",
    "import numpy as np\nnp.random.rand(3)": "calls numpy.random.rand",
    "import numpy as np\nnp.random.default_rng()": "calls numpy.random.default_rng",
    "from numpy.random import default_rng\ndefault_rng()": "calls numpy.random.default_rng",
    "import numpy as np\nnp.load('x')": "calls numpy.load",
    "import gzip\ngzip.open('x')": "calls gzip.open",
    "import zipfile\nzipfile.ZipFile(path)": "calls zipfile.ZipFile",
    "import maxminddb\nmaxminddb.open_database('x')": "calls maxminddb.open_database",
    "import io\nio.BytesIO()": "imports io",
    "from prometheus_client import start_http_server": "imports prometheus_client.start_http_server",
    "from gzip import open as o\no('x')": "calls gzip.open",
    "from core.io_clock import AnchoredClock": "imports our IO module core.io_clock",
    "from core import io_clock": "imports our IO module core.io_clock",
    "from . import io_thing": "imports our IO module policy.io_thing",
    "from .io_thing import x": "imports our IO module policy.io_thing",
    "import dnsd.main": "imports our IO module dnsd.main",
}

GOOD = [
    "import math, json, re, ipaddress, struct, hashlib, gzip",
    "import gzip\ngzip.decompress(b'')",
    "from io import BytesIO\nimport numpy as np\nnp.load(BytesIO(data), allow_pickle=False)",
    "from io import BytesIO\nfrom zipfile import ZipFile\nZipFile(BytesIO(data))",
    "import maxminddb\nmaxminddb.open_database(data, maxminddb.MODE_FD)",
    "from prometheus_client import CollectorRegistry\nfrom prometheus_client.core import GaugeMetricFamily",
    "import datetime\ndatetime.datetime.fromtimestamp(0, datetime.UTC)",
    "import numpy as np\nnp.random.default_rng(7)\nrng.random()",
    "import dns.zone\ndns.zone.from_text('')",
    "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import random",
    "def f(rng, now):\n    return rng.random() + now",
    "def f(sock):\n    return sock.open()",
    "from core.config import Config",
    "from urllib.parse import urlsplit",
    "from http import HTTPStatus",
]


@pytest.mark.parametrize(("source", "what"), BAD_IO.items())
def test_checker_finds_io_in_an_engine(source: str, what: str) -> None:
    found = find_io(source, ENGINE)
    assert len(found) == 1
    assert what in found[0]


@pytest.mark.parametrize("source", GOOD)
def test_checker_lets_pure_code_pass(source: str) -> None:
    assert find_io(source, ENGINE) == []
    assert find_arrows(source, ENGINE) == []


@pytest.mark.parametrize("path", ["core/io_x.py", "dnsd/main.py", "nearpath/anything.py", "nearpath/deep/x.py"])
def test_checker_lets_shells_do_io(path: str) -> None:
    assert find_io("import time, socket\nopen('x')", Path(path)) == []


@pytest.mark.parametrize("path", ["core/xio_.py", "core/domain.py", "policy/nearpath.py"])
def test_checker_is_not_fooled_by_similar_names(path: str) -> None:
    assert find_io("import time", Path(path))


def test_checker_finds_every_forbidden_arrow() -> None:
    for own, allowed in MAY_IMPORT.items():
        for other in MAY_IMPORT:
            sources = [f"import {other}.x", f"from {other} import x", f"from {other}.x import y"]
            found = [bool(find_arrows(source, Path(own, "x.py"))) for source in sources]
            assert found == [other not in allowed | {own}] * 3, (own, other)
    assert find_arrows("def f():\n    import tests.lab", Path("core/x.py"))
    assert find_arrows("from ..dnsd import wire", Path("policy/regions/x.py")) == []  # that is policy.dnsd
    assert find_arrows("from ...dnsd import wire", Path("policy/regions/x.py"))


# --- the tree -----------------------------------------------------------------------------------------------------------


def test_there_are_modules_to_check() -> None:
    assert {path.parts[0] for path in our_modules()} == set(MAY_IMPORT)


def test_table_of_arrows_is_the_one_in_the_design() -> None:
    rows = re.findall(r"^\| `(\w+)/` \| .* \| ([^|]+) \|$", (ROOT / "docs/design.md").read_text("utf-8"), re.M)
    written = {
        package: MAY_IMPORT["nearpath"]
        if arrows.strip() == "all"
        else set(re.findall(r"\w+", arrows)) & set(MAY_IMPORT)
        for package, arrows in rows
    }
    assert written == MAY_IMPORT


def test_imports_between_packages() -> None:
    found = [f for path in our_modules() for f in find_arrows((ROOT / path).read_text("utf-8"), path)]
    assert not found, "\n".join(found)


def test_io_only_in_shells() -> None:
    found = [f for path in our_modules() for f in find_io((ROOT / path).read_text("utf-8"), path)]
    assert not found, "\n".join([*found, "move it to a module named io_*.py, and hand the value in"])


def test_modules_are_small_and_named_for_what_they_do() -> None:
    found = []
    for path in our_modules():
        lines = len((ROOT / path).read_text("utf-8").splitlines())
        if lines > MAX_LINES:
            found.append(f"{path}: {lines} lines; one thing per module, at most {MAX_LINES}")
        if path.stem.removeprefix("io_") in VAGUE_NAMES:
            found.append(f"{path}: a name that says nothing; name the thing it does")
    assert not found, "\n".join(found)


def test_init_modules_only_re_export() -> None:
    plain = (ast.Import, ast.ImportFrom)
    found = []
    for path in our_modules():
        if path.name != "__init__.py":
            continue
        for node in ast.parse((ROOT / path).read_text("utf-8")).body:
            is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            is_dunder = isinstance(node, ast.Assign) and all(
                isinstance(t, ast.Name) and t.id.startswith("__") for t in node.targets
            )
            if not (isinstance(node, plain) or is_text or is_dunder):
                found.append(f"{path}:{node.lineno}: code in an __init__.py")
    assert not found, "\n".join(found)


MACHINE_PATH = re.compile(
    r"(?<![\w.])(/work/(?:main|shared)|/(?:root|home)/[\w.]+|/tmp/np\b|\.\./shared\b|/opt/(?:pypi|wheels))"
)
REGISTRY = re.compile(
    r"https?://[^\s/]*(?:pypi|pythonhosted|npmjs|registry\.npm|crates\.io)[^\s]*|file://|--?(?:extra-)?index-url"
)


def test_machine_paths_and_registries_are_recognised() -> None:
    for text in ["cat /work/main/x", "/root/.pyenv", "/home/jo/x", "in ../shared/data", "'/opt/pypi/simple'"]:
        assert MACHINE_PATH.search(text), text
    for text in ["https://pypi.org/simple", "https://files.pythonhosted.org/x", "pip --index-url x", "file:///opt/x"]:
        assert REGISTRY.search(text), text
    for text in ["/opt/nearpath/bin", "under /home or /root", "network/work/mainframe", "https://example.org/pypix"]:
        assert not MACHINE_PATH.search(text), text
        assert not REGISTRY.search(text), text


def test_no_machine_paths_and_no_registries_in_tracked_files() -> None:
    found = []
    for path in tracked_files():
        if ROOT / path == Path(__file__).resolve():
            continue
        data = (ROOT / path).read_bytes()
        if b"\0" in data[:8192] or path.suffix in {".gz", ".npz", ".mmdb"}:
            continue
        for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
            if match := MACHINE_PATH.search(line) or REGISTRY.search(line):
                found.append(f"{path}:{number}: {match[0]}")
    assert not found, "\n".join([*found, "a clone elsewhere cannot use these"])
