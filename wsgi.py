"""The WSGI application for any server: `gunicorn wsgi:app`, `waitress-serve wsgi:app`."""

from nexus.app import create_app

app = create_app()
