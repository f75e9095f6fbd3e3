"""The master: what a worker inherits when it is started."""

import os
import signal
import threading

from gunicorn.arbiter import Arbiter

from nexus.server.arbiter import Master
from nexus.server.worker_stage import ENDING


def blocked() -> set[signal.Signals]:
    return signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_signals_wait_until_a_new_worker_has_its_handlers(monkeypatch):
    """A TERM right after the fork would go to the handlers that the worker inherits."""
    seen, ended = [], []

    def spawn(_: Arbiter) -> int:
        seen.append(blocked())
        if pid := os.fork():
            os.kill(pid, signal.SIGTERM)
            ended.append(os.waitpid(pid, 0)[1])
            return pid
        # What `init_signals` of the worker does.
        signal.signal(signal.SIGTERM, lambda *_: os._exit(7))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        threading.Event().wait(60)  # the signal may come later
        os._exit(8)

    before = blocked()
    monkeypatch.setattr(Arbiter, "spawn_worker", spawn)
    assert Master.spawn_worker(object.__new__(Master)) > 0
    assert seen == [before | ENDING]
    assert blocked() == before
    assert os.waitstatus_to_exitcode(ended[0]) == 7
