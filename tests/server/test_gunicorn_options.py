"""gunicorn's own options: they work for requests on the fast path, too, or are refused by name."""

import logging
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from gunicorn.app.wsgiapp import WSGIApplication
from gunicorn.config import Config

from nexus.runtime.log import LineFormatter
from nexus.server.hooks import nworkers_changed, unsupported_option
from nexus.server.request_head import fast_path_limits

SHIPPED = Path(__file__).parents[2] / "gunicorn.conf.py"


@pytest.fixture
def settings(monkeypatch):
    """gunicorn's settings and log with the shipped file and further options."""
    loggers = [logging.getLogger(f"gunicorn.{name}") for name in ("error", "access")]
    before = [(each.level, each.propagate, list(each.handlers)) for each in loggers]

    def load(*options: str) -> Config:
        monkeypatch.setattr(sys, "argv", ["gunicorn", "-c", str(SHIPPED), *options, "wsgi:app"])
        return WSGIApplication().cfg

    yield load
    for each, (level, propagate, handlers) in zip(loggers, before, strict=True):
        for handler in set(each.handlers) - set(handlers):
            handler.close()
        each.level, each.propagate, each.handlers = level, propagate, handlers


@pytest.mark.parametrize(
    "options",
    [
        ["--access-logfile", "-"],
        ["--statsd-host", "127.0.0.1:9"],
        ["--log-syslog", "--log-syslog-to", "udp://127.0.0.1:9"],
        ["--header-map", "refuse"],
    ],
    ids=lambda options: options[0],
)
def test_what_only_gunicorn_does_leaves_the_fast_path(settings, options):
    shipped, changed = settings(), settings(*options)
    assert fast_path_limits(shipped, shipped.logger_class(shipped)) is not None
    log = changed.logger_class(changed)
    assert fast_path_limits(changed, log) is None
    if hasattr(log, "sock"):
        log.sock.close()


def test_gunicorns_log_has_the_format_and_goes_where_its_options_say(settings, tmp_path):
    file = tmp_path / "error.log"
    cfg = settings("--error-logfile", str(file), "--log-level", "debug")

    class Server:
        log = cfg.logger_class(cfg)

    nworkers_changed(Server, 2, 1)
    (handler,) = Server.log.error_log.handlers
    assert handler.baseFilename == str(file)
    assert isinstance(handler.formatter, LineFormatter)
    assert Server.log.error_log.level == logging.DEBUG


@pytest.mark.parametrize(
    "options",
    [
        ["--preload"],
        ["--user", str(os.geteuid() + 1)],
        ["--worker-class", "asgi"],
        ["--protocol", "uwsgi"],
        ["--http2-cleartext", "upgrade"],
    ],
    ids=lambda options: options[0],
)
def test_an_unsupported_option_is_refused_by_name(settings, options):
    assert unsupported_option(settings()) is None
    refusal = unsupported_option(settings(*options))
    assert refusal is not None
    assert options[0] in refusal


def test_gunicorn_ends_with_the_refusal(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    ended = subprocess.run(
        [sys.executable, "-m", "gunicorn", "-c", SHIPPED, "-b", address, "--preload", "wsgi:app"],
        cwd=SHIPPED.parent,
        env={**os.environ, "NEXUS_RUN_DIR": str(tmp_path / "run")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 2
    assert "--preload cannot be used" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "run").exists()
