"""A name server on loopback, which may be slow or silent, and processes that ask it alone."""

import contextlib
import socket
import struct
import threading
from pathlib import Path


class NameServer:
    """Answers A questions over UDP from `records`; a name that is not there does not exist.

    `silent`: it never responds. `delay_s` passes before each response, for all questions side by
    side.
    """

    def __init__(self, address: str, records: dict[str, str]) -> None:
        self.address = address
        self.records = records
        self.silent = False
        self.delay_s = 0.0
        self.asked: list[str] = []
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sock.bind((address, 53))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def prefix(self, directory: Path) -> list[str]:
        """What to put in front of a command, so that it sees this name server and no other (for
        root)."""
        file = directory / "resolv.conf"
        file.write_text(f"nameserver {self.address}\n")
        inside = f'mount --bind {file} /etc/resolv.conf && exec "$@"'
        return ["unshare", "--mount", "sh", "-c", inside, "sh"]

    def close(self) -> None:
        self._sock.sendto(b"", (self.address, 53))  # wakes the thread, which close would not
        self._thread.join()
        self._sock.close()

    def _serve(self) -> None:
        while True:
            question, client = self._sock.recvfrom(512)
            if not question:
                return
            threading.Timer(self.delay_s, self._answer, (question, client)).start()

    def _answer(self, question: bytes, client: tuple[str, int]) -> None:
        labels, at = [], 12
        while length := question[at]:
            labels.append(question[at + 1 : at + 1 + length].decode())
            at += 1 + length
        name = ".".join(labels)
        kind = struct.unpack_from("!H", question, at + 1)[0]
        self.asked.append(name)
        if self.silent:
            return
        found = self.records.get(name)
        here = found is not None and kind == 1
        flags = 0x8180 if found is not None else 0x8183
        reply = question[:2] + struct.pack("!5H", flags, 1, int(here), 0, 0) + question[12 : at + 5]
        if here:
            reply += struct.pack("!3HIH", 0xC00C, 1, 1, 0, 4) + socket.inet_aton(found)
        with contextlib.suppress(OSError):  # closed meanwhile
            self._sock.sendto(reply, client)
