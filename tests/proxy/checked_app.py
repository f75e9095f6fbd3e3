"""The gateway with two more checks: one takes a permit, the next refuses what asks for it.

Each taking and each release adds a line to the file that `PERMITS` names.
"""

import os
from pathlib import Path

from nexus.app import create_app
from nexus.errors import RequestFailed
from nexus.proxy import checks
from nexus.proxy.exchange import Exchange

_PERMITS = Path(os.environ["PERMITS"])


def _note(word: str, exchange: Exchange) -> None:
    with _PERMITS.open("a") as file:
        file.write(f"{word} {exchange.request_id}\n")


def take_permit(exchange: Exchange) -> None:
    _note("taken", exchange)
    exchange.on_release(lambda: _note("released", exchange))


def refuse(exchange: Exchange) -> None:
    if exchange.request.header("x-refuse"):
        raise RequestFailed("at_capacity", "Refused by a test.")


checks.CALLER = (take_permit, refuse)
checks.CHECKS = (*checks.HEAD, *checks.CALLER, *checks.BODY)
app = create_app()
