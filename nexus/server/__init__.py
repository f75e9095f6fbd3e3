"""Serving clients: everything that depends on gunicorn, gevent's hub, or Flask's endpoints."""
