"""gunicorn's settings for Nexus, from the environment; only the health process reads `nexus.toml`.

Each value can be overridden on gunicorn's command line.
"""

import gc
import importlib
import os
from typing import Any

from nexus.config.addresses import bracketed
from nexus.runtime import host, stderr
from nexus.server import hooks

stderr.make_nonblocking()  # before gunicorn's own log takes hold of it

_config, max_requests = hooks.environment()
bind = f"{bracketed(_config.server.host)}:{_config.server.port}"
workers = _config.server.workers or host.usable_cores()
# Requests mostly wait for backends: one process serves thousands of them on greenlets. The stock
# worker ("gevent") gives the same responses and metrics, without the fast path and our stop; it
# drops headers with underscores in their names.
worker_class = "nexus.server.worker.GatewayWorker"
# Connections of one worker, most of them idle. `max_concurrent_requests` bounds requests; this
# bounds descriptors, of which each connection may take two: the client's and the backend's.
worker_connections = 8192
backlog = 2048

# An application is made after the fork, because it belongs to the slot that is leased there.
preload_app = False


def when_ready(server: Any) -> None:
    """Import the program before the fork: workers start faster, and share its memory.

    Connections wait meanwhile: the listeners exist.
    """
    hooks.name_listeners(server)
    # At a worker's end modules are cleared in reverse order. Flask's log handler needs this one.
    importlib.import_module("gevent.thread")
    importlib.import_module("nexus.app")
    gc.collect()
    gc.freeze()  # the collector would write to objects, and so make each worker a copy of them


# A worker whose event loop blocks for so long is replaced. Requests may take longer.
timeout = 60
# How long requests in progress may go on at a stop.
graceful_timeout = _config.server.graceful_timeout_seconds
# Longer than the idle timeout of balancers (nginx: 60 s), so that they close first and never send a
# request on a connection that was just closed.
keepalive = 75

# Recycling (NEXUS_MAX_REQUESTS) is off because nothing needs it. Counters survive it.
max_requests_jitter = max_requests // 10

# Long bearer tokens and tracing headers fit. `max_request_bytes` bounds bodies.
limit_request_line = 8190
limit_request_fields = 100
limit_request_field_size = 16380

# Nothing here depends on the scheme or path that a proxy reports. gunicorn would refuse requests
# whose headers about them contradict each other, so it does not read them.
secure_scheme_headers: dict[str, str] = {}
forwarder_headers = ""

# The heartbeat file must not be on a disk that can block. No control thread may run in the master.
worker_tmp_dir = host.scratch_directory("/dev/shm", os.environ.get("NEXUS_RUN_DIR", ""))
control_socket_disable = True

# Nexus logs each request itself, with what gunicorn cannot know.
accesslog = None
errorlog = "-"
loglevel = os.environ.get("NEXUS_GUNICORN_LOG_LEVEL", "warning")
nworkers_changed = hooks.nworkers_changed
proc_name = "nexus"

on_starting = hooks.on_starting
post_fork = hooks.post_fork
post_worker_init = hooks.post_worker_init
worker_exit = hooks.worker_exit
on_reload = hooks.on_reload
