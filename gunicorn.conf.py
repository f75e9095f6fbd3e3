"""gunicorn's settings for Nexus. It reads the environment only: `nexus.toml` is the health process's to read.

Each value can be overridden on gunicorn's command line.
"""

import os

from nexus.runtime import host, stderr
from nexus.server import hooks

stderr.make_nonblocking()  # before gunicorn's own log takes hold of it

_host = os.environ.get("NEXUS_HOST", "0.0.0.0").strip("[]")
bind = f"{f'[{_host}]' if ':' in _host else _host}:{os.environ.get('NEXUS_PORT', '8000')}"
workers = int(os.environ.get("NEXUS_WORKERS") or 0) or host.usable_cores()
# Requests mostly wait for backends: one process serves thousands of them on greenlets. This is gunicorn's gevent worker
# but for its end; the stock one ("gevent") gives the same answers and figures.
worker_class = "nexus.server.GatewayWorker"
# Connections in one worker, most of them idle or waiting. `max_concurrent_requests` bounds the requests; this bounds
# descriptors: twice as many, a client's and a backend's for each.
worker_connections = 8192
backlog = 2048

# A slot must be taken after the fork, and prometheus_client must not be imported before it.
preload_app = False

# A worker whose event loop stands still this long is replaced. Requests may take longer: they do not block the loop.
timeout = 60
# How long requests in progress may go on at a stop or when a worker is replaced.
graceful_timeout = int(os.environ.get("NEXUS_GRACEFUL_TIMEOUT") or 30)
# Longer than the idle time of the balancers in front (nginx keeps 60 s), so that they close first and never write into
# a connection that we have just closed. It bounds the reading of a request's head, too.
keepalive = 75

# Counters survive a worker's recycling, so it costs nothing but the start; it is off because nothing here needs it.
max_requests = int(os.environ.get("NEXUS_MAX_REQUESTS") or 0)
max_requests_jitter = max_requests // 10

# Heads: long bearer tokens and tracing headers fit, abuse does not. Bodies are bounded by `max_request_bytes`.
limit_request_line = 8190
limit_request_fields = 100
limit_request_field_size = 16380

# Nothing here depends on the scheme or the path that a proxy in front tells of, so headers about them are not read:
# gunicorn would refuse requests in which they contradict each other.
secure_scheme_headers: dict[str, str] = {}
forwarder_headers = ""

# The heartbeat file must not be on a disk that can block; nor must a control thread run in the master.
worker_tmp_dir = host.scratch_directory("/dev/shm", os.environ.get("NEXUS_RUN_DIR", ""))
control_socket_disable = True

# Nexus writes one line per request itself, with what gunicorn cannot know.
accesslog = None
errorlog = "-"
loglevel = os.environ.get("NEXUS_GUNICORN_LOG_LEVEL", "warning")
logconfig_dict = hooks.log_config(os.environ.get("NEXUS_LOG_FORMAT", "pretty"), loglevel)
proc_name = "nexus"

on_starting = hooks.on_starting
post_fork = hooks.post_fork
post_worker_init = hooks.post_worker_init
worker_exit = hooks.worker_exit
on_reload = hooks.on_reload
