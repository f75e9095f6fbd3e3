"""systemd's journal, by its native protocol: one datagram for each entry."""

from __future__ import annotations

import socket
from pathlib import Path

SOCKET = Path("/run/systemd/journal/socket")


class Journal:
    """Sends lines to the journal, as entries with an identifier of their own."""

    def __init__(self, identifier: str, path: Path = SOCKET) -> None:
        self._path = str(path)
        self._rest = f"\nPRIORITY=6\nSYSLOG_IDENTIFIER={identifier}\n".encode()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def write(self, line: bytes) -> None:
        """Send a line, which ends with a newline. Raises OSError if the journal does not take it.

        It is not waited for: an entry that does not fit into the journal's buffer is an error.
        """
        self._socket.sendto(b"MESSAGE=" + line.rstrip(b"\n") + self._rest, self._path)

    def close(self) -> None:
        self._socket.close()
