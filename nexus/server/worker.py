"""gunicorn's gevent worker, with an end that does not wait for idle connections and does not cut streams.

The stock worker counts a kept-alive connection as work in progress: with a balancer in front, which keeps some open,
every stop and every recycling would take the whole `graceful_timeout`. And it is killed when that is over, with
whatever it still serves; this one ends that a moment before, so that clients are told, and all is counted. It also
hears of its end at once, where the stock one looks once a second. One that is replaced drains (see `nexus/server/arbiter.py`).
"""

from __future__ import annotations

import _socket
import contextlib
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
from gevent.server import StreamServer
from gunicorn import http, util
from gunicorn.config import Config
from gunicorn.sock import ssl_context
from gunicorn.workers.ggevent import GeventWorker

from nexus.config.records import Server
from nexus.http.client_watch import Stopping
from nexus.http.exhaustion import Shortage
from nexus.proxy.endpoints import BY_PATH, canonical
from nexus.proxy.engine import Engine
from nexus.runtime import stderr
from nexus.runtime.host import descriptor_limit
from nexus.server.body_pace import BodyPace
from nexus.server.event_loop import WaitScheduler
from nexus.server.fast_path import LINGER_S, FastPath, NotEligible
from nexus.server.paced_socket import PacedSocket
from nexus.server.request_head import HeadLimits
from nexus.server.worker_stage import DRAINING, RETIRING, SERVING, Stage

_LOOK_EVERY_S = 0.1
_NOTIFY_EVERY_S = 1.0
"""How often the master is shown that the worker lives."""
_IDLE_S = 1.0
"""A connection that was quiet for so long is ended at a stop. A busier one gets a request soon, and `Connection: close`
with its answer, which is the better end: a request that is on its way when a connection ends is lost on the client."""


_VIEWERS_S = 1.0
"""So long after a stop, responses that are no proxied ones are cut."""
_LAG_EVERY_S = 0.5
_RECENTS_EVERY_S = 0.25
"""How often a busy worker shows which requests have ended."""
_TO_SAY_GOODBYE_S = 1.0
"""So long before the end of the grace, what is still served is ended."""
_PATIENCE_S = 60.0
"""How long a connection may take to bring a request's head, where it is not kept for another one anyway."""
_COLLECT_AFTER = 20_000
"""Objects made, less those freed, before the collector looks for cycles; requests leave none."""
_RESERVED = 64
"""Descriptors that are for no connection: listeners, files of metrics, the log. Of the others, a client takes one and
the backend that serves it another."""
_WITHOUT = "NEXUS_WITHOUT_SHORT_WAY"
"""Set, every request goes through gunicorn's parser and Flask; for comparison."""


class _Listener(StreamServer):
    """Leaves nobody waiting when it closes, and waits for descriptors where there are none."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._shortage = Shortage()

    def do_read(self) -> Any:
        """Accept a connection; without a descriptor for it, it stays in the backlog for a moment."""
        try:
            return super().do_read()
        except OSError as error:
            if not self._shortage.caused(error):
                raise
            self.stop_accepting()
            self._timer = self.loop.timer(_LOOK_EVERY_S)
            self._timer.start(self._start_accepting_if_started)  # type: ignore[attr-defined,call-arg]
            return None

    def close(self) -> None:
        """Take the connections that the kernel has accepted for us, then stop listening.

        Where the last process that listens closes with such connections in the backlog, the kernel resets them; and a
        balancer that has sent a request by then can neither tell it from one that was served, nor send it again.
        """
        if not self.closed:
            self.stop_accepting()
            with contextlib.suppress(OSError):
                while not self.full() and (accepted := self.do_read()):
                    self.do_handle(*accepted)
        super().close()


class _Client:
    """A client's connection, and the greenlet that serves it.

    `idle_since` is on the monotonic clock, None while a request is served; `proxied`: that request is one to a proxied
    endpoint; `ended`: the connection is being ended while idle.
    """

    __slots__ = ("ended", "greenlet", "idle_since", "proxied")

    def __init__(self) -> None:
        self.greenlet = gevent.getcurrent()
        self.idle_since: float | None = time.monotonic()
        self.ended = False
        self.proxied = True


class GatewayWorker(GeventWorker):  # type: ignore[misc]
    """Ends idle client connections once it is told to stop; requests in progress keep their grace."""

    alive: bool
    max_requests: int
    drains = True
    """It can be told to drain by its `stage`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stage = Stage()
        self.told_to_end = False
        # Another worker is to serve before this one stops: gunicorn must not end it at its last request.
        self._worn_at, self.max_requests = self.max_requests, sys.maxsize
        self._deadline = math.inf
        self._goodbye_at = math.inf
        self._clients: dict[socket.socket, _Client] = {}
        self._limits: HeadLimits | None = None
        self._keepalive = True
        self._patience_s = _PATIENCE_S
        self._engine: Engine
        self._waits = WaitScheduler()
        self._pools: list[Pool] = []
        self._to_stop = Event()

    def run(self) -> None:
        # What is there now stays: the collector need not look at it again, nor stop every stream while it does.
        gc.collect()
        gc.freeze()
        gc.set_threshold(_COLLECT_AFTER, 20, 50)
        self._limits = self._plain_limits()
        self._keepalive = bool(self.cfg.keepalive)
        self._patience_s = self.cfg.keepalive or _PATIENCE_S
        self._engine = self.wsgi.extensions["nexus"].engine
        self._engine.request_log.batch_with(partial(gevent.spawn_later, _RECENTS_EVERY_S))
        gevent.spawn(self._meet_the_fleet)
        gevent.spawn(self._end_idle_connections)
        gevent.spawn(self._end_viewers)
        gevent.spawn(self._end_requests_after_the_grace)
        gevent.spawn(self._watch_lag)
        gevent.spawn(self._hear_signals)
        try:
            self._accept_until_the_end()
        finally:
            self._engine.request_log.flush()

    def _accept_until_the_end(self) -> None:
        """Serve until told to stop, then until what is in progress has ended, or its grace has."""
        most = min(self.worker_connections, max(1, (descriptor_limit() - _RESERVED) // 2))
        self._pools = pools = [Pool(most) for _ in self.sockets]
        servers = [
            self._listen(listener, pool) for listener, pool in zip(self.sockets, pools, strict=True)
        ]
        for server in servers:
            server.start()
        self.stage.set(SERVING)
        while self.alive:
            self.notify()
            self._to_stop.wait(_NOTIFY_EVERY_S)
            if self.stage.now == DRAINING:
                self._drain()
        self._to_stop.set()
        for server in servers:
            server.close()
        for pool in pools:
            while pool and (left_s := self._deadline - time.monotonic()) > 0:
                self.notify()
                pool.join(timeout=min(_NOTIFY_EVERY_S, left_s))
        if any(pools):
            self.log.warning("Worker graceful timeout (pid:%s)", self.pid)
            for server in servers:
                server.stop(timeout=1)

    def _listen(self, listener: Any, pool: Pool) -> StreamServer:
        listener.setblocking(1)
        tls = {"ssl_context": ssl_context(self.cfg)} if self.cfg.is_ssl else {}
        kind = StreamServer if tls else _Listener
        server = kind(listener, handle=partial(self.handle, listener), spawn=pool, **tls)
        if self.cfg.workers > 1:
            server.max_accept = 1  # so that they share what comes, as gunicorn has it
        return server

    def _hear_signals(self) -> None:
        """See at once that a signal has come; by itself the loop runs Python's handlers a few times a second only."""
        while True:
            gevent.socket.wait_read(self.PIPE[0])
            os.read(self.PIPE[0], 4096)
            if not self.alive:
                self._to_stop.set()

    def _plain_limits(self) -> HeadLimits | None:
        """The limits of the short way; None where every request must go through gunicorn: it is to log or to call a
        hook for each, or connections carry more than plain HTTP."""
        cfg, default = self.cfg, Config()
        if (
            cfg.is_ssl
            or cfg.proxy_protocol != "off"
            or cfg.accesslog
            or cfg.pre_request is not default.pre_request
            or cfg.post_request is not default.post_request
            or os.environ.get(_WITHOUT)
        ):
            return None
        return HeadLimits(
            fields=cfg.limit_request_fields,
            field=cfg.limit_request_field_size,
            line=cfg.limit_request_line,
        )

    def _meet_the_fleet(self) -> None:
        """Know the fleet as soon as there is one, not at the first request only: by then it may have to be the last
        that was seen."""
        while self._engine.fleet.current() is None and self.alive:
            gevent.sleep(_LOOK_EVERY_S)

    def _watch_lag(self) -> None:
        """Show that the loop moves, and record how late it does."""
        gateway = self.wsgi.extensions["nexus"]
        recorder, slot_lease = gateway.recorder, gateway.slot_lease
        while True:
            slot_lease.restore_row()
            slot_lease.row.record_heartbeat(time.monotonic_ns())
            due = time.monotonic() + _LAG_EVERY_S
            gevent.sleep(_LAG_EVERY_S)
            recorder.loop_lag(max(0.0, time.monotonic() - due))
            if any(pool.full() for pool in self._pools):
                self._end_idle()  # others wait in the backlog for their places
            stderr.flush_pending()
            recorder.count_dropped_log_lines()
            self._engine.fleet.current()  # also a worker that has served nothing yet knows the fleet it last saw

    def _drain(self) -> None:
        """Another worker serves now: take no more connections, and end with the last request."""
        self.wsgi.extensions["nexus"].slot_lease.row.mark_draining()
        snapshot = self._engine.fleet.snapshot()
        server = snapshot.config.server if snapshot else Server()
        self._end_within(server.drain_timeout_seconds)

    def init_signals(self) -> None:
        super().init_signals()
        for number in (signal.SIGHUP, signal.SIGUSR2):
            signal.signal(
                number, signal.SIG_IGN
            )  # meant for the master; the default would end the worker

    def handle_exit(self, *_: Any) -> None:
        """TERM: the whole gateway ends."""
        self._end_within(self.cfg.graceful_timeout)

    def handle_abort(self, *_: Any) -> None:
        """The master has missed us for its `timeout`. This runs, so the loop goes on, or KILL follows in a second."""
        self.log.warning("Worker was silent for longer than the timeout (pid:%s)", self.pid)
        self.cfg.worker_abort(self)

    def _end_within(self, grace_s: float) -> None:
        """Stop serving; what is in progress has so long. A shorter grace than that of an earlier call holds."""
        self.alive = False
        now = time.monotonic()
        self._deadline = min(self._deadline, now + grace_s)
        self._goodbye_at = min(
            self._goodbye_at, now + max(grace_s - _TO_SAY_GOODBYE_S, grace_s / 2)
        )

    def _end_requests_after_the_grace(self) -> None:
        self._to_stop.wait()
        while time.monotonic() < self._goodbye_at:
            gevent.sleep(_LOOK_EVERY_S)
        for client in list(self._clients.values()):
            if client.idle_since is None and isinstance(client.greenlet, gevent.Greenlet):
                client.greenlet.kill(Stopping, block=False)

    def handle(self, listener: Any, client: socket.socket, addr: Any) -> None:
        """Serve one connection: its plain requests here, all others by gunicorn's own parser and the application."""
        held = self._clients[client] = _Client()
        try:
            if self.cfg.is_ssl or self.cfg.proxy_protocol != "off":
                super().handle(listener, client, addr)
            else:
                self._serve(held, listener, client, addr)
        except (OSError, StopIteration, Stopping):
            pass  # the client's connection broke, or is to be closed; what there was to count was counted
        except Exception as error:
            self.log.exception("connection failed")
            self.handle_error(None, client, addr, error)
        finally:
            del self._clients[client]
            util.close(client)

    def _serve(self, held: _Client, listener: Any, client: socket.socket, addr: Any) -> None:
        lane = FastPath(
            self._engine, client, self._limits, waits=self._waits, keep_alive=self._goes_on
        )
        data: bytes | None = b""
        try:
            while data is not None:
                if not data:
                    data = lane.receive(self._patience_s)
                    if not data:
                        return
                if held.ended:
                    return  # it came while the connection was being ended; its client sees that it was not served
                held.idle_since = None
                try:
                    rest = lane.serve(data)
                    self._count()
                except NotEligible:
                    held.idle_since = time.monotonic()
                    whole = lane.complete_head(data, self._patience_s)
                    if len(whole) != len(data):
                        data = whole or None
                        continue
                    held.idle_since = None
                    rest = self._serve_by_gunicorn(listener, client, addr, data)
                    if rest is None and client.fileno() >= 0:
                        client.setblocking(False)
                        lane.linger()
                data = rest
                held.idle_since = time.monotonic()
                if data:
                    gevent.sleep(
                        0
                    )  # requests that were sent ahead must not starve other connections
        finally:
            lane.close()

    def _serve_by_gunicorn(
        self, listener: Any, client: socket.socket, addr: Any, data: bytes
    ) -> bytes | None:
        """One request as gunicorn serves it, from the bytes that were read; gives what came after it."""
        client.setblocking(True)
        source = PacedSocket(client)
        parser = http.get_parser(self.cfg, source, addr)
        parser.unreader.unread(data)
        req = None
        try:
            with self._patience():
                req = next(parser)
            if req is None:
                return None
            req.proxy_protocol_info = req.proxy_protocol_info or {}
            source.start_body(BodyPace(time.monotonic(), self._engine.server()))
            self.handle_request(listener.getsockname(), req, client, addr)
            drained = False
            with gevent.Timeout(min(LINGER_S, self._patience_s), False):  # type: ignore[arg-type]  # what gevent calls silent
                drained = parser.finish_body()
            if not drained:
                return None
        except (http.errors.NoMoreData, StopIteration):
            return None
        except OSError:
            raise
        except Exception as error:  # noqa: BLE001 - as gunicorn does with what its parser refuses
            self.handle_error(req, client, addr, error)
            return None
        client.setblocking(False)
        return bytes(parser.unreader.take_buffered())

    def _patience(self) -> gevent.Timeout:
        """Ends a block that takes too long, silently."""
        return gevent.Timeout(self._patience_s, False)  # type: ignore[arg-type]  # what gevent calls silent

    def _goes_on(self) -> bool:
        """Whether connections may carry further requests."""
        return self.alive and self._keepalive

    def _count(self) -> None:
        """A request was served: one nearer to the worker's recycling, if that is wanted."""
        self.nr += 1
        if self.nr >= self._worn_at:
            self._ask_to_be_replaced()

    def _ask_to_be_replaced(self) -> None:
        if self.stage.now == SERVING:
            self.log.info("Worker asks to be replaced (pid:%s)", self.pid)
            self.stage.set(RETIRING)

    def handle_request(self, listener_name: Any, req: Any, sock: socket.socket, addr: Any) -> None:
        held = self._clients[sock]
        if held.ended:
            raise StopIteration  # it came while the connection was being ended; its client sees that it was not served
        held.idle_since = None
        held.proxied = canonical(req.path)[0] in BY_PATH
        server = self._engine.server()
        sock.settimeout(server.client_timeout_seconds)
        length = dict(req.headers).get("CONTENT-LENGTH", "")
        if (
            req._expected_100_continue
            and length.isdigit()
            and int(length) > server.max_request_bytes
        ):
            # It is told 413 instead of 100, and does not send the body: the connection cannot be used again.
            req._expected_100_continue = False
            req.force_close()
        try:
            super().handle_request(listener_name, req, sock, addr)
        except Stopping:
            raise StopIteration from None  # it came between two waits; what there was to count was counted
        finally:
            if self.nr >= self._worn_at:
                self._ask_to_be_replaced()
            held.idle_since = time.monotonic()

    def _end_idle_connections(self) -> None:
        self._to_stop.wait()
        while True:
            gevent.sleep(_LOOK_EVERY_S)
            self._end_idle()

    def _end_idle(self) -> None:
        # Nothing in this loop lets another greenlet run: a connection that is idle stays so until it is ended.
        long_ago = time.monotonic() - _IDLE_S
        for client, held in self._clients.items():
            if held.idle_since is not None and held.idle_since < long_ago and not held.ended:
                with contextlib.suppress(OSError, ValueError):  # it may have closed by itself
                    held.ended = self._end(client)

    def _end_viewers(self) -> None:
        """Clients that do not read a page, or watch the dashboard, hold up no stop."""
        self._to_stop.wait()
        gevent.sleep(_VIEWERS_S)
        for client, held in list(self._clients.items()):
            if held.idle_since is None and not held.proxied:
                with contextlib.suppress(OSError):
                    client.shutdown(socket.SHUT_RDWR)

    @staticmethod
    def _end(client: socket.socket) -> bool:
        """End it if nothing has come; gives whether that was so."""
        # The same socket without gevent, which fails whoever waits for one that is shut down; a mere end is meant.
        raw = _socket.socket(fileno=client.fileno())
        try:
            raw.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            raw.shutdown(socket.SHUT_RD)
            return True
        finally:
            raw.detach()
        return False  # a request has come after all
