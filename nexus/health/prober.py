"""Probes one backend over the same connection pool as requests: same DNS, TLS and framing."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from nexus import __version__
from nexus.config import BackendConfig
from nexus.config.secrets import SecretError
from nexus.errors import RequestFailed
from nexus.fleet.records import Model
from nexus.health.dialect_probe import DialectProbe
from nexus.health.model_list import probe
from nexus.http.address import Address
from nexus.http.client_watch import DisconnectWatch
from nexus.http.connect_errors import reason
from nexus.http.connection_pool import Connection, ConnectionPool
from nexus.http.credentials import own_key, own_key_lines
from nexus.http.response_parser import MalformedResponse, ResponseParser
from nexus.providers.probing import BadProbeResponse, NotFetchedYet
from nexus.runtime.text import redact

log = logging.getLogger("nexus.health")

_MAX_BYTES = 16 * 1024 * 1024
_DETAIL_TTL_S = 3600.0
"""How long a detail without a version is valid."""
_FAILED_DETAIL_TTL_S = 300.0
"""How long to wait before a detail that failed is fetched again."""
_DETAILS_AT_ONCE = 64
"""Details that are fetched before the models are published again."""
_NOT_READY = (502, 503, 504)
_NO_CLIENT = DisconnectWatch(None)


@dataclass(frozen=True, slots=True)
class ProbeOutcome:
    """The result of a probe.

    Attributes:
        models: None if it failed.
        latency_s: Duration until its first response, even a bad one; None without one.
    """

    models: tuple[Model, ...] | None
    latency_s: float | None
    error: str | None = None
    capacity: int | None = None

    @property
    def success(self) -> bool:
        return self.models is not None


_Query = tuple[str, str]
"""A path and the JSON body to POST there; an empty one means GET."""


@dataclass(frozen=True, slots=True)
class _Detail:
    """A backend's response to one query about its models, kept over probes.

    Attributes:
        version: The response is valid while the list of models shows this version.
        until: Monotonic time after which it is fetched again.
        error: Why there is no usable response.
    """

    version: str
    until: float
    response: Any = None
    error: str | None = None


class Prober:
    """Probes one backend, and keeps details of its models until they change."""

    def __init__(
        self,
        config: BackendConfig,
        environ: Mapping[str, str],
        connections: ConnectionPool | None = None,
        *,
        pause: Callable[[], object] = lambda: None,
    ) -> None:
        """`pause` is called before a response is read, so that others can be received first."""
        self.config = config
        self._pause = pause
        self._environ = environ
        self._address = Address.of_backend(config)
        self._connections = connections or ConnectionPool(time.monotonic)
        self._responses: dict[_Query, Any] = {}
        self._details: dict[_Query, _Detail] = {}
        self._missing: dict[_Query, str] = {}
        self._dialects = DialectProbe(config)

    def probe(self, timeout_s: float) -> ProbeOutcome:
        """Fetch the models. Never raises; takes at most `timeout_s`.

        Queries with a version are details; `more_details` fetches them later.
        """
        deadline = time.monotonic() + timeout_s
        latency_s: float | None = None
        responses: dict[_Query, Any] = {}

        def send(query: _Query) -> Any:
            nonlocal latency_s
            try:
                response, content, took_s = self._send(query, deadline)
                latency_s = took_s if latency_s is None else latency_s
                responses[query] = content_json = self._decode(query[0], response, content)
            except BadProbeResponse as error:
                responses[query] = error
                raise
            return content_json

        try:
            models, capacity, missing = self._read(send)
        except TimeoutError:
            error = f"no response within {timeout_s:g} s"
        except (BadProbeResponse, OSError, RequestFailed) as failure:
            error = self._describe(failure, timeout_s)
        except Exception as failure:
            log.exception(
                "probe failed inside the health process", extra={"backend": self.config.name}
            )
            error = f"the probe failed ({type(failure).__name__}); the log has the trace"
        else:
            self._responses, self._missing = responses, missing
            return ProbeOutcome(models, latency_s, capacity=capacity)
        # Another server may listen there when it comes back.
        self._details = {query: detail for query, detail in self._details.items() if detail.version}
        self._missing = {}
        self._dialects.failed()
        return ProbeOutcome(None, latency_s, redact(error))

    def more_details(self, timeout_s: float) -> ProbeOutcome | None:
        """Fetch some of the missing details, and read the models again; None if none is missing.

        Each query may take `timeout_s`. After one that cannot reach the backend, none follows.
        """
        if not self._missing:
            return None
        reachable = True
        for query, version in list(self._missing.items())[:_DETAILS_AT_ONCE]:
            now = time.monotonic()
            try:
                response, content, _ = self._send(query, now + timeout_s)
                content_json = self._decode(query[0], response, content)
                self._details[query] = _Detail(
                    version, float("inf") if version else now + _DETAIL_TTL_S, content_json
                )
            except BadProbeResponse as error:
                self._details[query] = _Detail(
                    version, now + _FAILED_DETAIL_TTL_S, error=str(error)
                )
            except (OSError, RequestFailed):
                reachable = False
                break
        models, capacity, missing = self._read(self._last_response)
        self._missing = missing if reachable else {}
        return ProbeOutcome(models, None, capacity=capacity)

    def ask_dialects(self, known: Collection[str], timeout_s: float) -> frozenset[str] | None:
        """Ask, after a probe, which dialects the backend speaks; None if that is not due.

        `known` are those that it is taken to speak so far. Each query may take `timeout_s`.
        """

        def send(path: str, body: str) -> int | str:
            try:
                response, _, _ = self._send((path, body), time.monotonic() + timeout_s)
            except (BadProbeResponse, OSError, RequestFailed) as failure:
                return redact(self._describe(failure, timeout_s))
            return response.status

        version = self._version(timeout_s)
        return self._dialects.ask(version, send, known) if self._dialects.is_due(version) else None

    def _version(self, timeout_s: float) -> str:
        """The version that the backend shows; empty if it shows none."""
        if self.config.dialects or (place := self.config.provider.version) is None:
            return ""
        path, field = place
        try:
            response, content, _ = self._send((path, ""), time.monotonic() + timeout_s)
            shown = self._decode(path, response, content)
        except (BadProbeResponse, OSError, RequestFailed):
            return ""
        return str(shown.get(field) or "") if isinstance(shown, dict) else ""

    def close(self) -> None:
        """Close the idle connections of the pool."""
        self._connections.close()

    def _read(
        self, send: Callable[[_Query], Any]
    ) -> tuple[tuple[Model, ...], int | None, dict[_Query, str]]:
        """Read models and capacity; returns also the missing details with their versions."""
        missing: dict[_Query, str] = {}

        def fetch(
            path: str, body: dict[str, Any] | None = None, *, version: str | None = None
        ) -> Any:
            query = path, "" if body is None else json.dumps(body)
            if version is None:
                return send(query)
            detail = self._details.get(query)
            if detail is None or detail.version != version or detail.until <= time.monotonic():
                missing[query] = version
                raise NotFetchedYet(f"{path} was not fetched yet")
            if detail.error is not None:
                raise BadProbeResponse(detail.error)
            return detail.response

        result = probe(self.config, fetch)
        return tuple(result.models), result.capacity, missing

    def _last_response(self, query: _Query) -> Any:
        response = self._responses[query]
        if isinstance(response, BadProbeResponse):
            raise response
        return response

    def _decode(self, path: str, response: ResponseParser, content: bytes) -> Any:
        status = response.status
        if 300 <= status < 400:
            location = ascii(response.header("location") or "nowhere")
            raise BadProbeResponse(
                f"{path} responded {status}, a redirect to {location}; put the new address into url"
            )
        if status == 404 and path.startswith("/v1/"):
            target = self._address.target(path)
            raise BadProbeResponse(
                f"{target} responded 404; a path in url is used as written (base_path replaces "
                "it), and models of a server without this list go into [[backends.models]]",
                alive=True,
            )
        if status == 404:
            why = f"{path} responded 404; is its type {self.config.type}?"
            raise BadProbeResponse(why, alive=True)
        if status != 200:
            raise BadProbeResponse(f"{path} responded {status}", alive=status not in _NOT_READY)
        try:
            return json.loads(content)
        except ValueError as error:
            raise BadProbeResponse(
                f"{path} responded with something that is not JSON", alive=True
            ) from error
        except RecursionError as error:
            raise BadProbeResponse(
                f"{path} responded with JSON that is nested too deeply"
            ) from error

    def _send(self, query: _Query, deadline: float) -> tuple[ResponseParser, bytes, float]:
        """Send one query; returns the response, its body, and its duration in seconds.

        If an idle connection turns out to be closed, the query is sent again over a new one.
        """
        path, body = query[0], query[1].encode()
        for fresh in (False, True):
            config = replace(
                self.config, connect_timeout_seconds=max(0.001, deadline - time.monotonic())
            )
            connection = self._connections.acquire(
                self._address, config, watch=_NO_CLIENT, fresh=fresh
            )
            started = time.monotonic()
            try:
                content = self._exchange(connection, self._request_head(path, body), body, deadline)
            except (ConnectionError, MalformedResponse) as error:
                responded = connection.response.head_complete
                connection.close()
                if connection.reused and not responded and not fresh:
                    continue
                raise BadProbeResponse(self._describe_broken(path, error)) from error
            except BaseException:
                connection.close()
                raise
            took_s = time.monotonic() - started
            self._connections.release(self._address, connection, self.config.keepalive_seconds)
            self._pause()
            return connection.response, content, took_s
        raise AssertionError("the second connection is a new one")

    def _request_head(self, path: str, body: bytes) -> bytes:
        lines = [
            f"{'POST' if body else 'GET'} {self._address.target(path)} HTTP/1.1",
            f"host: {self._address.host_header}",
            f"user-agent: nexus/{__version__}",
            "accept: application/json",
            "accept-encoding: identity",
        ]
        if body:
            lines += ["content-type: application/json", f"content-length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in self.config.provider.headers]
        try:
            key_line = own_key_lines(self.config, own_key(self.config, self._environ))
        except SecretError as error:
            raise BadProbeResponse(str(error)) from None
        return ("\r\n".join(lines) + f"\r\n{key_line}\r\n").encode("latin-1")

    def _exchange(self, connection: Connection, head: bytes, body: bytes, deadline: float) -> bytes:
        response = connection.response = ResponseParser()
        try:
            connection.send(
                head,
                body,
                _NO_CLIENT,
                idle_s=max(0.0, deadline - time.monotonic()),
                deadline=deadline,
            )
        except TimeoutError:
            raise
        except OSError:
            # It closed the connection. A response or a TLS alert may still be there to read.
            pass
        pieces, size = [], 0
        while not response.complete:
            data = connection.receive(_NO_CLIENT, max(0.0, deadline - time.monotonic()))
            response.feed(data)
            if not data and not response.complete:
                raise ConnectionResetError(
                    "it closed the connection before its response was complete"
                )
            pieces.append(response.body())
            size += len(pieces[-1])
            if size > _MAX_BYTES:
                raise BadProbeResponse(f"the response is over {_MAX_BYTES} bytes")
        return b"".join(pieces)

    def _describe(self, failure: Exception, timeout_s: float) -> str:
        """Describes a failure, without nested exceptions of libraries."""
        if isinstance(failure, BadProbeResponse):
            return str(failure)
        cause = failure.__cause__ if isinstance(failure, RequestFailed) else failure
        if isinstance(cause, TimeoutError):
            return f"{reason(cause, self._address)} (no response within {timeout_s:g} s)"
        return reason(cause, self._address)

    def _describe_broken(self, path: str, error: Exception) -> str:
        if isinstance(error, MalformedResponse):
            return f"{path} responded with invalid HTTP: {error}"
        hint = (
            "; does it ask for a client certificate (client_cert_file)?"
            if self._address.tls
            else ""
        )
        return f"{path}: it closed the connection before its response was complete{hint}"
