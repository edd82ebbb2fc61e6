"""`nearpath doctor --agent`: on an agent's host, why it is silent: files, rights, the way to the appliance, the token."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path

import aiohttp

from core.config import AgentConfig
from core.errors import ConfigError, MessageError
from core.io_config import read_agent_config
from core.io_http import why_not_reached
from core.io_state import find_holder
from core.messages import TargetList, decode
from nearpath.api import AGENT_HEADER
from nearpath.doctor_files import Account, check_secret, check_state_dir, daemon_account, refuse
from nearpath.doctor_finding import Area, Finding
from nearpath.doctor_host import is_local, local_addresses
from nearpath.doctor_ports import check_ping
from nearpath.doctor_running import check_clock

_AREA = Area("appliance")
_TIMEOUT_S = 5.0
_MAX_TOKEN_CHARS = 4096
_SKEW_S = 5.0


def examine_agent(config_file: Path) -> list[Finding]:
    """All findings on the probe agent whose configuration is `config_file`."""
    try:
        config = read_agent_config(config_file)
    except ConfigError as error:
        return refuse(error)
    return list(_examine(config))


def _examine(config: AgentConfig) -> Iterator[Finding]:
    yield Area("configuration").good(f"the configuration of agent {config.name} loads")
    state_dir = Path(config.state_dir)
    # An agent has no control socket: its state_dir's owner tells who it is.
    account: Account = daemon_account(state_dir, state_dir / "no-socket")
    yield from check_secret(Path(config.token_file), "token file", account)
    yield from check_state_dir(state_dir, account)
    yield from _check_running(state_dir)
    yield from check_ping()
    yield from check_clock(None)
    yield from _check_source(config)
    try:
        token = Path(config.token_file).read_text()[:_MAX_TOKEN_CHARS].strip()
    except (OSError, UnicodeDecodeError):
        return
    yield from asyncio.run(_check_appliance(config, token))


def _check_running(state_dir: Path) -> Iterator[Finding]:
    area = Area("agent")
    try:
        pid = find_holder(state_dir)
    except OSError:
        pid = 0
    if pid:
        yield area.good(f"an agent runs here, process {pid}")
    else:
        yield area.note(
            f"no agent runs on state_dir {state_dir}: nothing is measured from here",
            "`systemctl start probe-agent`; why it ended: `journalctl -u probe-agent`",
        )


def _check_source(config: AgentConfig) -> Iterator[Finding]:
    local = local_addresses()
    for address in filter(None, (config.source.ipv4, config.source.ipv6)):
        if not is_local(address, local):
            yield Area("configuration").bad(
                f"source: no interface of this host has {address}", "correct it, or remove it: the system then chooses"
            )


async def _check_appliance(config: AgentConfig, token: str) -> list[Finding]:
    """Fetch the targets just as the agent does."""
    url = config.appliance.rstrip("/") + "/v1/targets"
    headers = {AGENT_HEADER: config.name, "Authorization": f"Bearer {token}"}
    started_s = time.time()
    try:
        trust = ssl.create_default_context(cafile=config.ca_file)
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S)) as session,
            session.get(url, headers=headers, ssl=trust, allow_redirects=False) as response,
        ):
            body = await response.read()
            date = response.headers.get("Date", "")
            return [*_judge_answer(url, config.name, response.status, body), *_judge_skew(date, started_s)]
    except aiohttp.ClientConnectorCertificateError as error:
        why = getattr(error.certificate_error, "verify_message", "") or str(error.certificate_error)
        fix = "name its certificate (or its CA's) as ca_file; the URL must have the name in the certificate"
        return [_AREA.bad(f"{url}: its certificate is not trusted: {why}", fix)]
    except (aiohttp.ClientError, ssl.SSLError, OSError, TimeoutError) as error:
        fix = "is the appliance up, report.listen in its configuration, the port open in its firewall, https and not http?"
        return [_AREA.bad(f"{url} cannot be reached: {why_not_reached(error)}", fix)]


def _judge_answer(url: str, name: str, status: int, body: bytes) -> Iterator[Finding]:
    if status in (401, 403):
        fix = "`nearpath agent-token` makes a new pair: the token for token_file, its token_sha256 for the appliance"
        yield _AREA.bad(f"{url} refuses agent {name}: the name is unknown there, or the token is wrong", fix)
        return
    if status != 200:
        yield _AREA.bad(
            f"{url} answers with status {status}", "is this the address of report.listen? see the appliance's log"
        )
        return
    try:
        targets = decode(TargetList, body).targets
    except MessageError as error:
        yield _AREA.bad(f"{url}: {error.what}", "is this the address of report.listen, and are both of one version?")
        return
    if targets:
        yield _AREA.good(f"{url} takes the token and gives {len(targets)} targets")
    else:
        yield _AREA.note(
            f"{url} takes the token, but has nothing to probe", "add services with mirrors and checks there"
        )


def _judge_skew(date: str, started_s: float) -> Iterator[Finding]:
    """The Date of the answer (RFC 9110 6.6.1) has whole seconds, so two clocks in step differ by up to one and a bit."""
    try:
        skew_s = started_s - parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError):
        return
    if abs(skew_s) > _SKEW_S:
        yield Area("clock").note(
            f"this host's clock is {skew_s:+.0f} s off the appliance's",
            "harmless for steering (agents report ages), not for TLS: run an NTP client on both",
        )
