"""The answer to a request to count tokens that no backend can count."""

from __future__ import annotations

from nexus.errors import RequestFailed
from nexus.proxy.engine import ClientResponse
from nexus.proxy.exchange import Exchange
from nexus.proxy.responses import whole_response

_CANNOT_COUNT = frozenset({"dialect_not_spoken", "backend_lacks_model"})
"""Faults of a fleet whose backends have the model, and not this endpoint."""


def estimated(exchange: Exchange, error: BaseException) -> ClientResponse | None:
    """An estimate in the place of this error; None unless the configuration wants one."""
    if (
        not exchange.endpoint.counts
        or not isinstance(error, RequestFailed)
        or error.fault.code not in _CANNOT_COUNT
        or exchange.view.snapshot.config.messages.count_tokens != "estimate"
    ):
        return None
    # A quarter of the characters, which limits take, is too little for code: a third is on the
    # safe side of a client's context.
    tokens = -(-exchange.token_estimate().prompt * 4 // 3)
    exchange.release()
    headers = [("content-type", "application/json"), ("x-nexus-estimated", "true")]
    return whole_response(exchange, 200, headers, b'{"input_tokens":%d}' % tokens)
