"""What the command line asks a running appliance over its control socket."""

from __future__ import annotations

import dataclasses
import ipaddress
from typing import TYPE_CHECKING

from aiohttp import web

from core.config import check_domain
from core.errors import BusUnavailable, NearpathError
from core.io_control import Refusal, control_app, told
from core.io_log import get_logger
from nearpath.picture import make_picture
from policy.explain import explain

if TYPE_CHECKING:
    from nearpath.appliance import Appliance


_log = get_logger("control")


def make_control_app(appliance: Appliance) -> web.Application:
    """The application behind the control socket."""

    async def status(_request: web.Request) -> web.Response:
        return told(make_picture(appliance))

    async def explain_name(request: web.Request) -> web.Response:
        query = request.query
        client, family, address = parse_client(query.get("client", ""))
        owner = _service_name(appliance, query.get("name", ""))
        asked = 6 if query.get("type", "A").upper() == "AAAA" else 4
        engine, now = appliance.steerer.engine, appliance.clock.now()
        story = explain(engine, owner, asked, client, address, family, now)
        if story is None:
            raise Refusal(404, f"{owner} has no IPv{asked} mirrors", "ask for the other type, or add addresses")
        return told(dataclasses.asdict(story))

    async def drain(request: web.Request) -> web.Response:
        return await _set_drained(appliance, request, True)

    async def undrain(request: web.Request) -> web.Response:
        return await _set_drained(appliance, request, False)

    async def reload(_request: web.Request) -> web.Response:
        try:
            await appliance.reload()
        except NearpathError as error:
            _log.error("reload_failed", why=str(error), doing="the old configuration runs on")
            raise Refusal(409, f"the old configuration runs on: {error.what}", error.fix) from None
        return told({"reloaded": str(appliance.config_file)})

    return control_app(
        [
            web.get("/v1/status", status),
            web.get("/v1/explain", explain_name),
            web.post("/v1/drain", drain),
            web.post("/v1/undrain", undrain),
            web.post("/v1/reload", reload),
        ]
    )


def parse_client(text: str) -> tuple[str, int, int]:
    """(canonical text, family, first address as a number) of `IP` or `IP/LEN`; NearpathError when it is neither."""
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError as error:
        raise NearpathError(
            f"{text!r} is not a client address or prefix: {error}", "write 192.0.2.7, 192.0.2.0/24 or 2001:db8::/48"
        ) from None
    shown = str(network) if "/" in text else str(network.network_address)
    return shown, network.version, int(network.network_address)


def _service_name(appliance: Appliance, text: str) -> str:
    try:
        owner = check_domain(text if text.endswith(".") else text + ".")
    except ValueError as error:
        raise Refusal(400, str(error), "give the steered name, such as www.mirror.example") from None
    services = appliance.config.services
    if owner not in services:
        raise Refusal(404, f"{owner} is not a steered name", f"steered names: {', '.join(services) or 'none'}")
    return owner


async def _set_drained(appliance: Appliance, request: web.Request, drained: bool) -> web.Response:
    try:
        body = await request.json()
        mirror, by = str(body["mirror"]), str(body.get("by", "unknown"))
    except (ValueError, KeyError, TypeError):
        raise Refusal(400, "the request names no mirror", 'send {"mirror": NAME}') from None
    try:
        await appliance.set_drained(mirror, drained, by)
    except KeyError:
        known = ", ".join(appliance.config.mirrors) or "none"
        raise Refusal(404, f"{mirror!r} is not a mirror", f"mirrors: {known}") from None
    except BusUnavailable as error:
        raise Refusal(503, error.what, error.fix) from None
    return told({"mirror": mirror, "drained": drained})
