"""Uploads: forms with files, kept until a backend has responded, so that a retry can send them."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator

from nexus.dialects.form_reader import FormField
from nexus.errors import RequestFailed

IN_MEMORY = 64 * 1024
"""Bytes of an upload that are kept in memory. A longer one is kept in a file without a name."""
_PIECE = 64 * 1024


class Upload:
    """The body of one request. `close` frees it, and may be called again."""

    def __init__(self, directory: str | None, spooled: Callable[[int], None]) -> None:
        """`spooled` counts the bytes that files hold."""
        self._file = tempfile.SpooledTemporaryFile(  # noqa: SIM115 - it outlives this call
            max_size=IN_MEMORY, dir=directory
        )
        self._spooled = spooled
        self._in_file = 0
        self._size = 0
        self._replaced: tuple[FormField, bytes] | None = None

    def __len__(self) -> int:
        if self._replaced is None:
            return self._size
        field, value = self._replaced
        return self._size - (field.end - field.start) + len(value)

    def write(self, piece: bytes) -> None:
        """Add the next bytes. Raises `RequestFailed` if there is no space."""
        try:
            self._file.write(piece)
        except OSError as error:
            raise RequestFailed(
                "at_capacity",
                f"The gateway cannot store the upload ({error.strerror}); try again later.",
                headers={"retry-after": "5"},
            ) from error
        self._size += len(piece)
        if self._size > IN_MEMORY:
            self._spooled(self._size - self._in_file)
            self._in_file = self._size

    def replace(self, field: FormField, value: str) -> None:
        """Send this value in the place of a field's own."""
        self._replaced = None if value == field.value else (field, value.encode())

    def pieces(self) -> Iterator[bytes]:
        """All bytes, as they are to be sent."""
        if self._replaced is None:
            yield from self._between(0, self._size)
        else:
            field, value = self._replaced
            yield from self._between(0, field.start)
            yield value
            yield from self._between(field.end, self._size)

    def _between(self, start: int, end: int) -> Iterator[bytes]:
        self._file.seek(start)
        while start < end and (piece := self._file.read(min(_PIECE, end - start))):
            start += len(piece)
            yield piece

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
        if self._in_file:
            self._spooled(-self._in_file)
            self._in_file = 0
