"""Reads a form (multipart/form-data, RFC 7578) as it arrives, and keeps the small fields that the
gateway needs. All other bytes are dropped here: whoever feeds it stores the body."""

from __future__ import annotations

import re
from enum import Enum
from typing import NamedTuple

_BOUNDARY = re.compile(r';\s*boundary=(?:"([^"]{1,200})"|([^\s;"]{1,200}))', re.IGNORECASE)
_DISPOSITION = re.compile(rb"content-disposition:[ \t]*form-data[ \t]*(.*)", re.IGNORECASE)
_NAME = re.compile(rb';[ \t]*name=(?:"((?:[^"\\]|\\.)*)"|([^\s;"]+))', re.IGNORECASE)
_FILE = re.compile(rb";[ \t]*filename\*?=", re.IGNORECASE)
_MOST_PARTS = 1000
_LONGEST_HEADERS = 16 * 1024
_LONGEST_VALUE = 1024
_LONGEST_PADDING = 64


class MalformedForm(Exception):
    """The body is not the form that its media type says."""


class FormField(NamedTuple):
    """The value of a field, and where it starts and ends in the body."""

    value: str
    start: int
    end: int


class _State(Enum):
    DATA = 0
    """The content of a part, or what comes before the first one."""
    DELIMITER = 1
    HEADERS = 2
    END = 3


class FormReader:
    """Reads one form.

    Attributes:
        fields: The fields among `names` that have come.
    """

    def __init__(self, content_type: str, names: frozenset[str]) -> None:
        """`names` are the fields to keep. Raises `MalformedForm` if there is no boundary."""
        boundary = _BOUNDARY.search(content_type)
        if boundary is None:
            raise MalformedForm("The content type has no boundary.")
        self.fields: dict[str, FormField] = {}
        self._names = names
        self._delimiter = b"\r\n--" + (boundary[1] or boundary[2]).encode("latin-1", "replace")
        self._buffer = bytearray(b"\r\n")  # as if a line came before the first delimiter
        self._offset = -2
        self._parts = 0
        self._state = _State.DATA
        self._name: str | None = None
        self._start = 0
        self._value = b""

    def feed(self, piece: bytes) -> None:
        """Read the next bytes. Raises `MalformedForm`."""
        if self._state is _State.END:
            return
        self._buffer += piece
        while self._step():
            pass

    def end(self) -> None:
        """The body has ended. Raises `MalformedForm` if the form has not."""
        if self._state is not _State.END:
            raise MalformedForm("The form ends before its last boundary.")

    def _step(self) -> bool:
        """Read one part of the form; False if more bytes are needed, or none."""
        if self._state is _State.DATA:
            return self._read_data()
        if self._state is _State.DELIMITER:
            return self._read_delimiter()
        return self._state is _State.HEADERS and self._read_headers()

    def _drop(self, count: int) -> None:
        del self._buffer[:count]
        self._offset += count

    def _read_data(self) -> bool:
        at = self._buffer.find(self._delimiter)
        count = at if at >= 0 else max(0, len(self._buffer) - len(self._delimiter) + 1)
        if self._name is not None:
            self._value += self._buffer[:count]
            if len(self._value) > _LONGEST_VALUE:
                raise MalformedForm(f"The field `{self._name}` is too long.")
        self._drop(count)
        if at < 0:
            return False
        if self._name is not None:
            value = self._value.decode(errors="replace")
            self.fields[self._name] = FormField(value, self._start, self._offset)
        self._drop(len(self._delimiter))
        self._state = _State.DELIMITER
        return True

    def _read_delimiter(self) -> bool:
        if len(self._buffer) < 2:
            return False
        if self._buffer[:2] == b"--":
            self._state = _State.END
            self._buffer.clear()
            return False
        end = self._buffer.find(b"\r\n")
        padding = self._buffer if end < 0 else self._buffer[:end]
        if padding.strip(b" \t\r") or len(padding) > _LONGEST_PADDING:
            raise MalformedForm("A boundary of the form is followed by other characters.")
        if end < 0:
            return False
        self._parts += 1
        if self._parts > _MOST_PARTS:
            raise MalformedForm(f"The form has over {_MOST_PARTS} parts.")
        self._drop(end)  # the line's end stays: the headers may be empty
        self._state = _State.HEADERS
        return True

    def _read_headers(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > _LONGEST_HEADERS:
                raise MalformedForm("The headers of a part of the form are too long.")
            return False
        self._name = self._name_in(bytes(self._buffer[:end]))
        self._drop(end + 4)
        self._start, self._value, self._state = self._offset, b"", _State.DATA
        return True

    def _name_in(self, headers: bytes) -> str | None:
        """The name of a part that is to be kept."""
        for line in headers.split(b"\r\n"):
            if (found := _DISPOSITION.match(line)) is None:
                continue
            name = _NAME.search(found[1])
            if name is None or _FILE.search(found[1]):
                return None
            text = (name[1] if name[1] is not None else name[2]).decode(errors="replace")
            if text in self.fields:
                raise MalformedForm(f"The field `{text}` is given twice.")
            return text if text in self._names else None
        return None
