"""The private parts of libraries that the gateway uses: an upgrade that moves one fails here, by
name.

`pyproject.toml` bounds these libraries from above for the same reason.
"""

import inspect
from pathlib import Path

import pytest
from gunicorn.arbiter import Arbiter
from gunicorn.glogging import Logger
from gunicorn.http.parser import Parser
from gunicorn.http.unreader import Unreader
from gunicorn.workers.ggevent import GeventWorker
from prometheus_client.mmap_dict import MmapedDict

GUNICORN = [
    (Arbiter, "manage_workers"),
    (Arbiter, "reload"),
    (Arbiter, "spawn_worker"),
    (Arbiter, "stop"),
    (Arbiter, "kill_worker"),
    (Arbiter, "kill_workers"),
    (Arbiter, "reap_workers"),
    (Arbiter, "murder_workers"),
    (Arbiter, "handle_usr2"),
    (Arbiter, "WORKERS"),
    (Logger, "access_log_enabled"),
    (Parser, "finish_body"),
    (Unreader, "unread"),
    (Unreader, "take_buffered"),
    (GeventWorker, "patch"),
    (GeventWorker, "handle"),
    (GeventWorker, "handle_request"),
    (GeventWorker, "handle_error"),
    (GeventWorker, "notify"),
    (GeventWorker, "PIPE"),
]


@pytest.mark.parametrize(
    ("owner", "name"), GUNICORN, ids=lambda part: getattr(part, "__name__", part)
)
def test_gunicorn_has_the_part(owner: type, name: str):
    assert hasattr(owner, name)


def test_the_counter_file_has_its_private_fields(tmp_path: Path):
    file = MmapedDict(str(tmp_path / "counter_1.db"))
    try:
        file.write_value("key", 1.0, 0.0)
        for name in ("_used", "_capacity", "_positions", "_m", "_f"):
            assert hasattr(file, name), name
        assert set(file._positions) == {"key"}
    finally:
        file.close()


def test_the_worker_is_still_made_of_what_ours_replaces():
    source = inspect.getsource(GeventWorker.run)
    for name in ("worker_connections", "graceful_timeout", "StreamServer", "notify"):
        assert name in source, name
