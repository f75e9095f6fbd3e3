"""Everything that knows gunicorn, gevent's hub or Flask's client endpoints."""
