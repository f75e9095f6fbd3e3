"""Lines to a socket that speaks the journal's protocol."""

import socket

import pytest

from nexus.runtime.journal import Journal


def test_a_line_is_one_entry(tmp_path):
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(path))
        journal = Journal("nexus-requests", path)
        journal.write(b'{"status":200}\n')
        assert server.recv(1000) == (
            b'MESSAGE={"status":200}\nPRIORITY=6\nSYSLOG_IDENTIFIER=nexus-requests\n'
        )
        journal.close()


def test_a_journal_that_takes_nothing_is_an_error_at_once(tmp_path):
    path = tmp_path / "socket"
    journal = Journal("nexus-requests", path)
    with pytest.raises(FileNotFoundError):
        journal.write(b"x\n")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(path))
        with pytest.raises(BlockingIOError):
            fill(journal)
    journal.close()


def fill(journal: Journal) -> None:
    for _ in range(10_000):
        journal.write(b"x" * 1000 + b"\n")
