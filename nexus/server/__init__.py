"""Everything that knows gunicorn, gevent's hub or Flask's client endpoints."""

from nexus.server.worker import GatewayWorker

__all__ = ["GatewayWorker"]
