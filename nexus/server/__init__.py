"""gunicorn's gevent worker made for this gateway: a short way for plain requests, and an end that cuts nothing.

Everything that knows gevent and gunicorn is in here.
"""

from nexus.server.worker import GatewayWorker

__all__ = ["GatewayWorker"]
