"""Probing one backend over HTTP, with requests."""

from __future__ import annotations

import json
import logging
import re
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gevent
import requests
from requests.adapters import HTTPAdapter

from nexus.backends import BadAnswer, capacity_of, probe_of
from nexus.backends.address import Address, own_key
from nexus.config import BackendConfig
from nexus.fleet.records import Model

log = logging.getLogger("nexus.health")

_ERRNO = re.compile(r"^\[Errno -?\d+\] ")
_MOST_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Result:
    """What a probe came to. `latency_s` is that of its first answer, also of a bad one; None where there was none."""

    models: tuple[Model, ...] | None
    latency_s: float | None
    error: str | None = None
    capacity: int | None = None

    @property
    def success(self) -> bool:
        return self.models is not None


class _SystemTrust(HTTPAdapter):
    """Trusts the certificates that the proxy trusts: the system's, not the library's own."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, ssl_context=ssl.create_default_context(), **kwargs)


class Prober:
    """Probes one backend, over a connection that it keeps."""

    def __init__(self, config: BackendConfig, environ: Mapping[str, str]) -> None:
        self._config = config
        self._address = Address.of(config.url)
        self._session = requests.Session()
        self._session.trust_env = False  # the proxy goes straight to the backend; so does its probe
        self._session.mount("https://", _SystemTrust())
        if key := own_key(config, environ):
            self._session.headers["authorization"] = f"Bearer {key}"

    def probe(self, timeout_s: float) -> Result:
        """Ask the backend how it is and what it has. Never raises; takes at most `timeout_s`."""
        latency_s: float | None = None

        def fetch(path: str, body: dict[str, Any] | None = None) -> Any:
            nonlocal latency_s
            began = time.monotonic()
            method = "GET" if body is None else "POST"
            with self._session.request(
                method, self._address.url(path), json=body, timeout=timeout_s, allow_redirects=False, stream=True
            ) as answer:
                content = _limited(answer)
            if latency_s is None:
                latency_s = time.monotonic() - began
            if answer.status_code != 200:
                raise BadAnswer(f"{path} answered {answer.status_code}")
            try:
                return json.loads(content)
            except ValueError as error:
                raise BadAnswer(f"{path} answered what is not JSON") from error

        timeout = gevent.Timeout(timeout_s)  # the library bounds single reads, this the whole probe
        try:
            with timeout:
                models = tuple({model.name: model for model in probe_of(self._config.type)(fetch)}.values())
                capacity = capacity_of(self._config.type)(fetch)
        except gevent.Timeout as expired:
            if expired is not timeout:
                raise
            return Result(None, None, f"no answer within {timeout_s:g} s")
        except BadAnswer as error:
            return Result(None, latency_s, str(error))
        except requests.RequestException as error:
            return Result(None, latency_s, _plain(error))
        except Exception as error:
            log.exception("probe failed inside the health process", extra={"backend": self._config.name})
            return Result(None, latency_s, f"the probe failed: {error}")
        return Result(models, latency_s, capacity=capacity)

    def close(self) -> None:
        self._session.close()


def _limited(answer: requests.Response) -> bytes:
    pieces, size = [], 0
    for piece in answer.iter_content(64 * 1024):
        pieces.append(piece)
        size += len(piece)
        if size > _MOST_BYTES:
            raise BadAnswer(f"the answer is over {_MOST_BYTES} bytes")
    return b"".join(pieces)


def _plain(error: requests.RequestException) -> str:
    """A failure in words for a log line, without the library's nesting."""
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, requests.exceptions.SSLError):
        return f"TLS failed: {error}"
    if isinstance(error, requests.ConnectionError):
        reason = getattr(error.args[0], "reason", error.args[0]) if error.args else error
        return _ERRNO.sub("", str(reason).rpartition(": ")[2]) or "it cannot be reached"
    return str(error)
