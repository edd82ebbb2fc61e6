"""Running the appliance as a daemon."""

from __future__ import annotations

import asyncio
from pathlib import Path

from core.io_life import Life, errors_printed, live
from dnsd.io_selfcheck import are_answering
from nearpath.appliance import Appliance


def run_appliance(config_file: Path, *, with_dns: bool = True) -> None:
    """Run until SIGTERM or SIGINT; when it cannot start, the error is printed and gives the exit status."""
    with errors_printed("nearpath"):
        asyncio.run(live(lambda: _start(config_file, with_dns)))


async def _start(config_file: Path, with_dns: bool) -> Life:
    appliance = await Appliance.open(config_file, with_dns=with_dns)

    def status() -> str:
        return "; ".join(appliance.not_ready()) or f"serving {len(appliance.config.services)} steered names"

    async def is_well() -> bool:
        return await asyncio.to_thread(are_answering, appliance.dns_addresses) and not appliance.not_ready()

    return Life(status=status, reload=appliance.reload, close=appliance.close, is_well=is_well)
