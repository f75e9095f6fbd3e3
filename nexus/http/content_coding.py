"""Decodes the content codings of request bodies: a backend gets the decoded body."""

from __future__ import annotations

import gzip
import sys
import zlib
from collections.abc import Callable
from io import BytesIO
from typing import Protocol

from nexus.errors import RequestFailed

if sys.version_info >= (3, 14):
    from compression.zstd import DecompressionParameter, ZstdError, ZstdFile
else:
    from backports.zstd import DecompressionParameter, ZstdError, ZstdFile

_PIECE = 1024 * 1024
_ZSTD_WINDOW_LOG = 23
"""The largest window that a decoder must support, as a power of two: 8 MiB (RFC 9659)."""
_BROKEN = (zlib.error, gzip.BadGzipFile, ZstdError, EOFError)


class _Reader(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Deflate:
    """Reads a zlib stream, or a bare deflate stream, which some clients send instead (RFC 9110,
    section 8.4.1.2)."""

    def __init__(self, body: bytes) -> None:
        has_header = (
            len(body) > 1 and body[0] & 0x0F == 8 and int.from_bytes(body[:2], "big") % 31 == 0
        )
        self._decoder = zlib.decompressobj(zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS)
        self._source = BytesIO(body)

    def read(self, size: int) -> bytes:
        decoder = self._decoder
        while not decoder.eof:
            data = decoder.unconsumed_tail or self._source.read(64 * 1024)
            if piece := decoder.decompress(data, size):
                return piece
            if not data:
                raise EOFError("it ends early")
        if decoder.unused_data or self._source.read(1):
            raise zlib.error("there are bytes after its end")
        return b""


_READERS: dict[str, Callable[[bytes], _Reader]] = {
    "gzip": lambda body: gzip.GzipFile(fileobj=BytesIO(body)),
    "x-gzip": lambda body: gzip.GzipFile(fileobj=BytesIO(body)),
    "deflate": _Deflate,
    "zstd": lambda body: ZstdFile(
        BytesIO(body), options={DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG}
    ),
}


def coding_of(header: str | None) -> str | None:
    """The coding that a Content-Encoding names; None if there is none. Raises `RequestFailed`
    for an unknown one."""
    coding = (header or "").strip().lower()
    if coding in ("", "identity"):
        return None
    if coding not in _READERS:
        raise RequestFailed(
            "unsupported_encoding",
            f"The content encoding {coding[:100]!r} is not supported; "
            "send gzip, deflate, zstd or none.",
            headers={"accept-encoding": "gzip, deflate, zstd"},
        )
    return coding


def decode(
    body: bytes, coding: str, *, limit: int, hold: Callable[[int], None], pause: Callable[[], None]
) -> bytes:
    """The decoded body, of at most `limit` bytes.

    `hold` counts the bytes of each piece, and `pause` lets other requests run between two. Raises
    `RequestFailed`.
    """
    pieces: list[bytes] = []
    size = 0
    try:
        reader = _READERS[coding](body)
        while piece := reader.read(_PIECE):
            size += len(piece)
            if size > limit:
                raise RequestFailed("body_too_large", f"The decoded body is over {limit} bytes.")
            hold(len(piece))
            pieces.append(piece)
            if len(piece) == _PIECE:
                pause()
    except _BROKEN as error:
        raise RequestFailed(
            "body_malformed", f"The body is not valid {coding}: {error}."
        ) from error
    return b"".join(pieces)
