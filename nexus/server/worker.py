"""gunicorn's gevent worker with a fast path, and a stop that does not cut requests short.

The stock worker counts an idle kept-alive connection as work in progress. Behind a balancer, which
keeps some open, every stop would take the whole `graceful_timeout`, at whose end the worker is
killed with what it still serves. This worker closes idle connections, and ends what is left a
moment before the timeout: clients get an error, and all is counted. It also reacts to signals at
once instead of once a second. A replaced worker drains (see `nexus/server/arbiter.py`).

Private parts of gunicorn used here, which `tests/test_private_parts.py` names: `patch`, `handle`,
`handle_request`, `handle_error`, `notify` and `PIPE` of its worker, and the parser's `unreader` and
`finish_body`.
"""

from __future__ import annotations

import gc
import math
import os
import signal
import socket
import sys
import time
from functools import partial
from typing import Any

import gevent
import gevent.socket
from gevent.event import Event
from gevent.pool import Pool
from gunicorn import http, util
from gunicorn.sock import ssl_context
from gunicorn.workers.ggevent import GeventWorker

from nexus.config.records import Server
from nexus.http.client_watch import ClientGone, Stopping
from nexus.proxy.endpoints import ENDPOINTS
from nexus.proxy.engine import Engine
from nexus.runtime import stderr
from nexus.runtime.host import descriptor_limit
from nexus.runtime.plugins import metadata_read_once
from nexus.server.body_pace import BodyPace
from nexus.server.client_connections import ClientConnection, ClientConnections
from nexus.server.event_loop import WaitScheduler
from nexus.server.fast_path import LINGER_S, FastPath, NotEligible
from nexus.server.listener import DrainingListener
from nexus.server.paced_socket import PacedSocket
from nexus.server.refusals import ErrorWriter, dialect_of_head
from nexus.server.request_head import HeadLimits, fast_path_limits
from nexus.server.worker_stage import DRAINING, ENDING, RETIRING, SERVING, Stage
from nexus.server.wsgi import HEAD_SECONDS, distinct

_POLL_INTERVAL_S = 0.1
_NOTIFY_INTERVAL_S = 1.0
"""How often the master is shown that the worker lives."""
_VIEWER_GRACE_S = 1.0
"""How long after a stop responses that are not proxied may go on."""
_LAG_INTERVAL_S = 0.5
_HISTORY_DELAY_S = 0.25
"""How late a busy worker writes ended requests into the history."""
_ENDING_S = 1.0
"""How long before the end of the grace what is still served is ended."""
_IDLE_TIMEOUT_S = 60.0
"""How long a connection may be silent before a request, if connections are not kept alive."""
_GC_THRESHOLD = 20_000
"""Objects made, less those freed, before the collector looks for cycles. Requests leave none."""
_MOST_DRAINED = 64 * 1024
"""Bytes of a body that nobody has read which are skipped to keep the connection."""
_RESERVED_DESCRIPTORS = 64
"""Descriptors for listeners, metrics files and the log. Each connection takes two of the others: a
client's and a backend's."""


class GatewayWorker(GeventWorker):  # type: ignore[misc]
    """A gevent worker that closes idle connections at a stop and lets requests finish."""

    alive: bool
    max_requests: int
    supports_draining = True
    """Its master may put it into the stage DRAINING."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stage = Stage()
        self.term_sent = False
        # Another worker must serve before this one stops, so gunicorn must not stop it after
        # `max_requests`.
        self._retire_after, self.max_requests = self.max_requests, sys.maxsize
        self._deadline = self._ending_at = math.inf
        self._clients = ClientConnections()
        self._limits: HeadLimits | None = None
        self._keepalive = True
        self._idle_timeout_s = _IDLE_TIMEOUT_S
        self._engine: Engine
        self._scheduler = WaitScheduler()
        self._pools: list[Pool] = []

    def patch(self) -> None:
        with metadata_read_once():
            super().patch()
        self._stopping = Event()
        if self.cfg.header_map == "drop":
            self.cfg.set("header_map", "dangerous")  # `distinct` takes the danger away

    def run(self) -> None:
        # What exists now stays: the collector need not scan it again, nor pause every stream while
        # it does.
        gc.collect()
        gc.freeze()
        gc.set_threshold(_GC_THRESHOLD, 20, 50)
        self._limits = fast_path_limits(self.cfg, self.log)
        self._keepalive = bool(self.cfg.keepalive)
        self._idle_timeout_s = self.cfg.keepalive or _IDLE_TIMEOUT_S
        self._tls = ssl_context(self.cfg) if self.cfg.is_ssl else None
        self._engine = self.wsgi.extensions["nexus"].engine
        self._engine.history.batch_with(partial(gevent.spawn_later, _HISTORY_DELAY_S))
        for task in (
            self._wait_for_fleet,
            self._close_idle_connections,
            self._close_viewers,
            self._stop_requests,
            self._watch_lag,
            self._watch_signals,
        ):
            gevent.spawn(task)
        try:
            self._serve_until_stopped()
        finally:
            self._engine.history.flush()

    def _serve_until_stopped(self) -> None:
        """Serve until a stop, then until all requests or their grace have ended."""
        descriptors = descriptor_limit() - _RESERVED_DESCRIPTORS
        size = min(self.worker_connections, max(1, descriptors // 2))
        self._pools = pools = [Pool(size) for _ in self.sockets]
        servers = [
            self._listen(listener, pool) for listener, pool in zip(self.sockets, pools, strict=True)
        ]
        for server in servers:
            server.start()
        self.stage.set(SERVING)
        while self.alive:
            self.notify()
            self._stopping.wait(_NOTIFY_INTERVAL_S)
            if self.stage.now == DRAINING:
                self._drain()
        self._stopping.set()
        for server in servers:
            server.close()
        for pool in pools:
            while pool and (remaining_s := self._deadline - time.monotonic()) > 0:
                self.notify()
                pool.join(timeout=min(_NOTIFY_INTERVAL_S, remaining_s))
        if any(pools):
            self.log.warning("Worker graceful timeout (pid:%s)", self.pid)
            for server in servers:
                server.stop(timeout=1)

    def _listen(self, listener: Any, pool: Pool) -> DrainingListener:
        listener.setblocking(1)
        server = DrainingListener(listener, handle=partial(self.handle, listener), spawn=pool)
        if self.cfg.workers > 1:
            server.max_accept = 1  # as gunicorn does, so that workers share new connections
        return server

    # Background tasks

    def _watch_signals(self) -> None:
        """React to a signal at once: by itself the loop runs Python's handlers only a few times a
        second."""
        while True:
            gevent.socket.wait_read(self.PIPE[0])
            os.read(self.PIPE[0], 4096)
            if not self.alive:
                self._stopping.set()

    def _wait_for_fleet(self) -> None:
        """Read the fleet as soon as there is one: at the first request, the health process may be
        gone already."""
        while self._engine.fleet.current() is None and self.alive:
            gevent.sleep(_POLL_INTERVAL_S)

    def _watch_lag(self) -> None:
        """Show in the worker's row that the loop moves, and record how late it does."""
        gateway = self.wsgi.extensions["nexus"]
        recorder, slot_lease = gateway.recorder, gateway.slot_lease
        while True:
            slot_lease.restore_row()
            slot_lease.row.record_heartbeat(time.monotonic_ns())
            due = time.monotonic() + _LAG_INTERVAL_S
            gevent.sleep(_LAG_INTERVAL_S)
            recorder.loop_lag(max(0.0, time.monotonic() - due))
            if any(pool.full() for pool in self._pools):
                self._clients.close_idle()  # connections in the backlog need their places
            stderr.flush_pending()
            recorder.count_dropped_log_lines()
            self._engine.on_heartbeat()
            self._clients.end_requests(self._engine.running, self._engine.ended_keys())

    def _close_idle_connections(self) -> None:
        self._stopping.wait()
        while True:
            gevent.sleep(_POLL_INTERVAL_S)
            self._clients.close_idle()

    def _close_viewers(self) -> None:
        self._stopping.wait()
        gevent.sleep(_VIEWER_GRACE_S)
        self._clients.close_viewers()

    def _stop_requests(self) -> None:
        self._stopping.wait()
        while time.monotonic() < self._ending_at:
            gevent.sleep(_POLL_INTERVAL_S)
        self._clients.stop_requests()

    # The end of the worker

    def init_signals(self) -> None:
        super().init_signals()
        # HUP and USR2 are meant for the master: the default action would end the worker. gunicorn
        # logs WINCH. No handler here may log: it runs between any two instructions, and would wait
        # for ever for a lock that the interrupted greenlet is just acquiring.
        for number in (signal.SIGHUP, signal.SIGUSR2, signal.SIGWINCH):
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)  # see `Master.spawn_worker`

    def handle_exit(self, *_: Any) -> None:
        """TERM: the whole gateway stops."""
        self._stop_within(self.cfg.graceful_timeout)

    def handle_abort(self, *_: Any) -> None:
        """ABRT: the master got no heartbeat for `timeout`. This runs, so the loop moves, or KILL
        follows in a second."""
        gevent.spawn(
            self.log.warning, "Worker was silent for longer than the timeout (pid:%s)", self.pid
        )
        self.cfg.worker_abort(self)

    def _drain(self) -> None:
        """Another worker has taken over: accept no more connections, and stop after the last
        request."""
        self.wsgi.extensions["nexus"].slot_lease.row.mark_draining()
        snapshot = self._engine.fleet.snapshot()
        server = snapshot.config.server if snapshot else Server()
        self._stop_within(server.drain_timeout_seconds)

    def _stop_within(self, grace_s: float) -> None:
        """Stop serving; requests in progress have `grace_s`, or what is left of a shorter grace
        given before."""
        self.alive = False
        now = time.monotonic()
        self._deadline = min(self._deadline, now + grace_s)
        self._ending_at = min(self._ending_at, now + max(grace_s - _ENDING_S, grace_s / 2))

    def _count_request(self) -> None:
        self.nr += 1
        self._retire_if_due()

    def _retire_if_due(self) -> None:
        """Ask the master for a replacement after `max_requests`."""
        if self.nr >= self._retire_after and self.stage.now == SERVING:
            self.log.info("Worker asks to be replaced (pid:%s)", self.pid)
            self.stage.set(RETIRING)

    # Serving a connection

    def handle(self, listener: Any, client: socket.socket, addr: Any) -> None:
        """Serve one connection: eligible requests on the fast path, all others by gunicorn and
        Flask."""
        if self._tls is not None:
            try:
                client = self._tls.wrap_socket(
                    client, server_side=True, do_handshake_on_connect=False
                )
            except OSError:
                return  # it has closed already, as health checks of balancers do
        held = self._clients[client] = ClientConnection()
        try:
            if self._tls is not None and not self._shakes_hands(client):
                return
            if self._tls is not None or self.cfg.proxy_protocol != "off":
                super().handle(listener, client, addr)
            else:
                self._serve(held, listener, client, addr)
        except (OSError, ClientGone, StopIteration, Stopping):
            pass  # the connection broke or is to be closed; its request has been recorded
        except Exception:
            self.log.exception("connection failed")
        finally:
            del self._clients[client]
            util.close(client)

    def _shakes_hands(self, client: Any) -> bool:
        """Complete the TLS handshake; False if it fails, or takes longer than a head may."""
        try:
            with _silent_timeout(self._idle_timeout_s):
                client.do_handshake()
                return True
        except OSError as error:
            self.log.info("TLS handshake failed (%s)", error)
        return False

    def _serve(
        self, held: ClientConnection, listener: Any, client: socket.socket, addr: Any
    ) -> None:
        fast_path = FastPath(
            self._engine,
            client,
            self._limits,
            scheduler=self._scheduler,
            keep_alive=self._keeps_alive,
        )
        data: bytes | None = b""
        try:
            while data is not None:
                if not data:
                    data = fast_path.receive(self._idle_timeout_s)
                    if not data:
                        return
                if held.closing:
                    return  # it came after the shutdown, which the client sees
                held.request_started(proxied=True)
                try:
                    rest = fast_path.serve(data)
                    self._count_request()
                except NotEligible:
                    held.request_ended()
                    whole = fast_path.complete_head(data, self._idle_timeout_s)
                    if len(whole) != len(data):
                        data = whole or None
                        continue
                    held.request_started(proxied=True)
                    held.head_s = fast_path.take_head_s()
                    rest = self._serve_by_gunicorn(listener, client, addr, data)
                    if rest is None and client.fileno() >= 0:
                        client.setblocking(False)
                        fast_path.linger()
                except (OSError, ClientGone):
                    raise
                except Exception as error:  # noqa: BLE001 - `handle_error` logs it
                    self._answer_failure(None, client, addr, error, data)
                    fast_path.linger()
                    rest = None
                data = rest
                held.request_ended()
                if data:
                    gevent.sleep(0)  # a client that sends requests ahead must not starve others
        finally:
            fast_path.close()

    def _serve_by_gunicorn(
        self, listener: Any, client: socket.socket, addr: Any, data: bytes
    ) -> bytes | None:
        """Serve the request that `data` starts with by gunicorn's parser and the application.

        Returns the bytes after it; None if the connection is to be closed.
        """
        client.setblocking(True)
        source = PacedSocket(client)
        parser = http.get_parser(self.cfg, source, addr)
        parser.unreader.unread(data)
        req = None
        try:
            with _silent_timeout(self._idle_timeout_s):
                req = next(parser)
            if req is None:
                return None
            req.proxy_protocol_info = req.proxy_protocol_info or {}
            source.start_body(BodyPace(time.monotonic(), self._engine.server()))
            self.handle_request(listener.getsockname(), req, client, addr)
            drained = False
            with _silent_timeout(min(LINGER_S, self._idle_timeout_s)):
                drained = parser.finish_body(max_bytes=_MOST_DRAINED + 1)
            if not drained:
                return None
        except (http.errors.NoMoreData, StopIteration):
            return None
        except OSError:
            raise
        except Exception as error:  # noqa: BLE001 - gunicorn responds to what its parser refuses
            self._answer_failure(req, client, addr, error, data)
            return None
        client.setblocking(False)
        return bytes(parser.unreader.take_buffered())

    def _answer_failure(
        self, req: Any, client: socket.socket, addr: Any, error: Exception, data: bytes
    ) -> None:
        """Log the failure and respond to the request that `data` starts with."""
        writer = ErrorWriter(
            client,
            error,
            dialect=dialect_of_head(data),
            rejected=self._engine.recorder.rejected,
        )
        self.handle_error(req, writer, addr, error)

    def handle_request(self, listener_name: Any, req: Any, sock: socket.socket, addr: Any) -> None:
        held = self._clients[sock]
        if held.closing:
            raise StopIteration  # it came after the shutdown, which the client sees
        server = self._engine.server()
        most = server.max_request_bytes
        endpoint = ENDPOINTS.at(ENDPOINTS.canonical(req.path)[0])
        held.request_started(proxied=endpoint is not None)
        if endpoint is not None and endpoint.body in ("multipart", "any"):
            most = server.max_upload_bytes
        req.headers = [*map(distinct, req.headers), (HEAD_SECONDS, str(held.head_s))]
        sock.settimeout(server.client_timeout_seconds)
        length = dict(req.headers).get("CONTENT-LENGTH", "")
        too_large = length.isdigit() and int(length) > most
        if req._expected_100_continue and too_large:
            # Answer 413 instead of 100. The client does not send the body, so the connection cannot
            # be used again.
            req._expected_100_continue = False
            req.force_close()
        try:
            super().handle_request(listener_name, req, sock, addr)
        except Stopping:
            raise StopIteration from None  # thrown between two waits; the request has been recorded
        finally:
            self._retire_if_due()
            held.request_ended()

    def _keeps_alive(self) -> bool:
        """Whether connections may carry further requests."""
        return self.alive and self._keepalive


def _silent_timeout(seconds: float) -> gevent.Timeout:
    """A context that ends its block after `seconds` without raising."""
    return gevent.Timeout(seconds, False)  # type: ignore[arg-type]
