"""A reader of standard error that stands still costs lines of the log, and nothing else."""

import fcntl
import json
import os
import pty
import signal
import socket
import threading
import tty

import pytest

from nexus.runtime.stderr import NonBlockingText
from tests.support.load import chat, run
from tests.support.metrics import scrape
from tests.support.polling import until
from tests.support.processes import Demo, Gateway, backend_toml

REQUESTS = 900
LINES = 3000


def a_pipe() -> tuple[int, int]:
    return os.pipe()


def a_socket() -> tuple[int, int]:
    reader, writer = socket.socketpair()
    return reader.detach(), writer.detach()


def a_terminal() -> tuple[int, int]:
    reader, writer = pty.openpty()
    tty.setraw(writer)
    return reader, writer


class Reader:
    """Reads a descriptor in a thread of its own, from `start` on."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._data = b""
        self._thread = threading.Thread(target=self._read, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _read(self) -> None:
        while data := os.read(self._fd, 65536):
            self._data += data

    def lines(self) -> list[str]:
        return self._data.decode().rpartition("\n")[0].splitlines()


@pytest.mark.parametrize("kind", [a_pipe, a_socket, a_terminal])
def test_what_is_not_read_is_dropped_and_reported(kind):
    read_end, write_end = kind()
    stream = NonBlockingText(write_end)
    for number in range(LINES):
        stream.write(f"line {number} {'x' * 200}\n")
    assert 0 < stream.dropped < LINES
    reader = Reader(read_end)
    reader.start()
    notice = f"{stream.dropped} lines of the log were dropped."

    def told() -> bool:
        stream.flush_pending()
        return notice in reader.lines()

    until(told)
    stream.write("and on\n")
    until(lambda: reader.lines()[-1] == "and on")
    kept = [line for line in reader.lines() if line.startswith("line ")]
    assert all(line.endswith("x" * 200) for line in kept), "no line is torn"
    assert len(kept) + stream.dropped == LINES
    numbers = [int(line.split()[1]) for line in kept]
    assert numbers == sorted(set(numbers)), "each once, in their order"


def test_a_line_longer_than_the_pipe_is_written_whole():
    read_end, write_end = os.pipe()
    stream = NonBlockingText(write_end)
    stream.write("y" * 300_000 + "\n")
    reader = Reader(read_end)
    reader.start()
    until(lambda: (stream.flush_pending(), reader.lines() == ["y" * 300_000])[1])
    assert stream.dropped == 0


def test_a_reader_that_has_gone_blocks_nothing_and_is_counted():
    read_end, write_end = os.pipe()
    stream = NonBlockingText(write_end)
    os.close(read_end)
    for _ in range(10):
        stream.write("lost\n")
        stream.flush_pending()
    assert stream.dropped == 10


def test_a_file_is_continued_where_the_shell_left_it(tmp_path):
    file = tmp_path / "log"
    fd = os.open(file, os.O_WRONLY | os.O_CREAT)
    os.write(fd, b"before\n")
    NonBlockingText(fd).write("after\n")
    assert file.read_text() == "before\nafter\n"


def test_the_descriptor_of_others_stays_blocking():
    _, write_end = os.pipe()
    NonBlockingText(write_end).write("x\n")
    assert os.get_blocking(write_end)


def test_a_descriptor_that_is_led_elsewhere_is_followed(tmp_path):
    read_end, write_end = os.pipe()
    stream = NonBlockingText(write_end)
    stream.write("first\n")
    other = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    os.dup2(other, write_end)
    stream.flush_pending()
    stream.write("second\n")
    assert os.read(read_end, 100) == b"first\n"
    assert (tmp_path / "log").read_text() == "second\n"


@pytest.fixture
def unread(tmp_path):
    """A gateway whose standard error goes to a pipe of 16 KiB; gives it and the end to read."""
    read_end, write_end = os.pipe()
    fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, 16384)
    with Demo(tmp_path, length=3) as demo:
        gateway = Gateway(tmp_path, backend_toml(demo), stderr=write_end)
        os.close(write_end)
        try:
            yield gateway, Reader(read_end)
        finally:
            gateway.stop()


def ask(gateway: Gateway, count: int) -> list[int]:
    statuses: list[int] = []
    asks = [chat("chat", "demo-small", max_tokens=3)] * count
    run(gateway.port, asks, concurrency=8, seen=lambda _, status, __: statuses.append(status))
    return statuses


@pytest.mark.e2e
def test_every_request_is_served_and_every_line_is_accounted_for(unread):
    gateway, reader = unread
    assert ask(gateway, REQUESTS) == [200] * REQUESTS
    until(lambda: scrape(gateway.operations).value("nexus_log_lines_dropped_total") > 0)
    reader.start()

    def events(name: str) -> list[dict]:
        return [line for text in reader.lines() if (line := json.loads(text))["event"] == name]

    def told() -> int:
        return sum(line["lines"] for line in events("log lines were dropped, nobody read them"))

    until(lambda: len(events("request")) + told() == REQUESTS)
    until(lambda: scrape(gateway.operations).value("nexus_log_lines_dropped_total") == told())
    assert ask(gateway, 5) == [200] * 5
    until(lambda: len(events("request")) + told() == REQUESTS + 5)


@pytest.mark.e2e
def test_a_stop_does_not_wait_for_the_reader(unread):
    gateway, _ = unread
    assert ask(gateway, REQUESTS) == [200] * REQUESTS
    assert gateway.stop(number=signal.SIGTERM, within_s=20) == 0
