"""The shipped configurations of the front servers, run as they are but for names, addresses and paths."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.local_infer.certificate import make_certificate
from tests.local_infer.gateway import KEY
from tests.tracked import ROOT

SHIPPED = ROOT / "configs" / "front"
_START_S = 20.0

# nginx as root gives its workers away to a user who may not look into the test's folder.
_NGINX = """\
{user}
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/front.log info;
worker_processes 1;
events {{ worker_connections 256; }}
http {{
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    access_log off;
    include {folder}/mirror.conf;
}}
"""


@dataclass(frozen=True)
class Reply:
    """What curl got: `HTTP/2` or `HTTP/1.1`, status, headers (names in lower case), body."""

    version: str
    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Front:
    """A running front server; it listens on sockets in its folder, so no port can be taken."""

    folder: Path
    ca_file: Path

    def argv(self, path: str, *options: str, plain: bool = False) -> list[str]:
        """curl's command line for a path, headers first in its output, over TLS with HTTP/2 unless `plain`."""
        socket = self.folder / ("plain.sock" if plain else "tls.sock")
        way = [] if plain else ["--http2", "--cacert", str(self.ca_file)]
        url = f"{'http' if plain else 'https'}://localhost{path}"
        return ["curl", "-sS", "-N", "-i", *way, "--unix-socket", str(socket), *options, url]

    async def get(self, path: str, *options: str, plain: bool = False) -> Reply:
        """GET, or what the options make of it."""
        process = await asyncio.create_subprocess_exec(
            *self.argv(path, *options, plain=plain), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        out, errors = await process.communicate()
        assert process.returncode == 0, errors.decode() + self.log()
        return read_reply(out)

    async def post(self, path: str, body: str, *options: str, plain: bool = False) -> Reply:
        """POST of a JSON body with the client's key."""
        return await self.get(path, *post_options(body), *options, plain=plain)

    def log(self) -> str:
        """What the server wrote, for a failure's message."""
        file = self.folder / "front.log"
        return file.read_text(errors="replace")[-4000:] if file.exists() else ""


def post_options(body: str) -> list[str]:
    """curl's options for a POST of JSON with the client's key."""
    return ["-H", f"Authorization: Bearer {KEY}", "-H", "Content-Type: application/json", "--data-binary", body]


def read_reply(out: bytes) -> Reply:
    """Take apart what `curl -i` wrote; interim responses are left out."""
    head, _, body = out.partition(b"\r\n\r\n")
    while head.split(b" ")[1].startswith(b"1"):
        head, _, body = body.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    version, status = first.split(" ")[:2]
    pairs = (line.partition(":") for line in lines)
    return Reply(version, int(status), {name.lower(): value.strip() for name, _, value in pairs}, body)


def _set(text: str, values: Sequence[tuple[str, str]]) -> str:
    """Replace what the shipped file tells to set; a value that is not there any more is a failure."""
    for old, new in values:
        assert old in text, f"{old!r} is not in the shipped file"
        text = text.replace(old, new)
    return text


def _write_nginx(folder: Path, gateway: str, files: Path, tls: tuple[Path, Path]) -> list[str]:
    conf = _set(
        (SHIPPED / "nginx.conf").read_text(),
        [
            ("127.0.0.1:8080", gateway),
            ("listen [::]:443 ssl http2;", ""),
            ("listen [::]:80;", ""),
            ("listen 443 ", f"listen unix:{folder}/tls.sock "),
            ("listen 80;", f"listen unix:{folder}/plain.sock;"),
            ("mirror.example.org", "localhost"),
            ("/etc/nginx/tls/mirror.crt", str(tls[0])),
            ("/etc/nginx/tls/mirror.key", str(tls[1])),
            ("/var/log/nginx/", f"{folder}/"),
            ("/etc/nginx/mirror-files.conf", f"{folder}/mirror-files.conf"),
        ],
    )
    (folder / "mirror.conf").write_text(conf)
    shared = _set((SHIPPED / "nginx-files.conf").read_text(), [("/srv/mirror", str(files))])
    (folder / "mirror-files.conf").write_text(shared)
    (folder / "nginx.conf").write_text(_NGINX.format(folder=folder, user="user root;" if os.geteuid() == 0 else ""))
    return ["nginx", "-p", str(folder), "-e", str(folder / "front.log"), "-c", str(folder / "nginx.conf")]


def _write_caddy(folder: Path, gateway: str, files: Path, tls: tuple[Path, Path]) -> list[str]:
    conf = _set(
        (SHIPPED / "Caddyfile").read_text(),
        [
            ("127.0.0.1:8080", gateway),
            # No admin interface and no redirect server, for both take fixed ports; HTTP/3 has no sockets of this kind.
            ("{\n\tservers {\n", "{\n\tadmin off\n\tauto_https disable_redirects\n\tservers {\n\t\tprotocols h1 h2\n"),
            ("\nmirror.example.org {\n", f"\nlocalhost {{\n\tbind unix/{folder}/tls.sock\n\ttls {tls[0]} {tls[1]}\n"),
            ("http://mirror.example.org {\n", f"http://localhost {{\n\tbind unix/{folder}/plain.sock\n"),
            ("/srv/mirror", str(files)),
        ],
    )
    (folder / "Caddyfile").write_text(conf)
    return ["caddy", "run", "--adapter", "caddyfile", "--config", str(folder / "Caddyfile")]


_WRITERS = {"nginx": _write_nginx, "caddy": _write_caddy}


def _prepare(kind: str, folder: Path, gateway: str, files: Path) -> tuple[Front, list[str]]:
    folder.mkdir()
    tls = make_certificate(folder)
    return Front(folder, tls[0]), _WRITERS[kind](folder, gateway, files, tls)


@asynccontextmanager
async def running_front(kind: str, folder: Path, gateway: str, files: Path) -> AsyncIterator[Front]:
    """nginx or Caddy in front of the gateway at ADDRESS:PORT, serving `files`; its own things are in `folder`."""
    front, argv = _prepare(kind, folder, gateway, files)
    # Caddy keeps certificates and its last configuration below the home folder otherwise.
    env = {**os.environ, "HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    with (folder / "front.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(*argv, stdout=log, stderr=log, env=env)
    try:
        async with asyncio.timeout(_START_S):
            while not all((folder / name).is_socket() for name in ("tls.sock", "plain.sock")):
                assert process.returncode is None, front.log()
                await asyncio.sleep(0.02)
        yield front
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
