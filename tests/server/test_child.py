"""A child of `nexus serve`, and its restarts."""

import sys
from pathlib import Path

from nexus.server import child as child_module
from nexus.server.child import Child
from tests.support.polling import until


def test_one_that_cannot_be_started_is_tried_again(monkeypatch, caplog):
    """While Python is replaced, or for lack of memory: the gateway goes on meanwhile."""
    monkeypatch.setattr(child_module, "_FIRST_BACKOFF_S", 0.0)
    helper = Child("helper", ["-c", "raise SystemExit(3)"], {})
    assert until(helper.keep_running) == 3
    with monkeypatch.context() as replaced:
        replaced.setattr(sys, "executable", str(Path("/nonexistent/python")))
        assert helper.keep_running() is None
        assert "the helper cannot be started" in caplog.text
        assert helper.keep_running() == 3, "it is missing, still"
    before = helper.process
    assert helper.keep_running() is None
    assert helper.process is not before
    assert until(helper.keep_running) == 3
