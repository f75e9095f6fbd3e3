"""Datagrams to the service manager, to a real socket."""

import os
import socket

import pytest

from nexus.runtime.sd_notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    """A socket, and the name that the environment would have for it."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@nexus-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(name.replace("@", "\0", 1) if request.param == "abstract" else name)
        sock.settimeout(5)
        yield sock, name


def test_what_is_reported(manager):
    sock, name = manager
    environ = {"NOTIFY_SOCKET": name, "PATH": "/bin"}
    notifier = Notifier.from_environ(environ)
    assert environ == {"PATH": "/bin"}, "a child must not find it"
    assert notifier
    notifier.status("Loading.")
    notifier.status("Loading.")
    notifier.ready("Serving.")
    notifier.status("Serving.")
    notifier.reloading()
    notifier.stopping()
    said = [sock.recv(4096).decode().splitlines() for _ in range(4)]
    assert said[:2] == [["STATUS=Loading."], ["READY=1", "STATUS=Serving."]]
    assert said[2][0] == "RELOADING=1"
    assert said[2][1].removeprefix("MONOTONIC_USEC=").isdigit()
    assert said[3] == ["STOPPING=1"]


class Enough(Exception):
    pass


def test_watchdog(manager):
    sock, name = manager
    notifier = Notifier.from_environ(
        {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}
    )
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 2:
            raise Enough

    with pytest.raises(Enough):
        notifier.feed_watchdog(sleep)
    assert slept == [1.0, 1.0]
    assert [sock.recv(64) for _ in slept] == [b"WATCHDOG=1"] * 2


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"WATCHDOG_USEC": "3000000"},
        {"NOTIFY_SOCKET": "/x"},
        {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"},
        {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "soon"},
    ],
)
def test_no_watchdog_that_is_not_ours(environ):
    notifier = Notifier.from_environ(environ)
    assert notifier.watchdog_s is None
    notifier.feed_watchdog(lambda _: pytest.fail("it must return at once"))


@pytest.mark.parametrize("name", [None, "/nowhere/at/all"])
def test_nobody_listens(name):
    notifier = Notifier(name)
    assert bool(notifier) == (name is not None)
    notifier.ready("Serving.")
    notifier.stopping()
