"""TLS settings towards backends: whom we trust, and who we are. Files that were replaced are read again."""

from __future__ import annotations

import logging
import ssl
from pathlib import Path

log = logging.getLogger("nexus.proxy")

Files = tuple[str | None, str | None, str | None]
"""A backend's `ca_file`, `client_cert_file` and `client_key_file`."""
_Stamp = tuple[tuple[int, int, int] | None, ...]


class TlsContexts:
    """One TLS context for each set of files, made anew when one of them was replaced.

    So an exchanged certificate is used from the next new connection on, by probes and requests alike.
    """

    def __init__(self) -> None:
        self._made: dict[Files, tuple[_Stamp, ssl.SSLContext]] = {}

    def of(self, files: Files) -> ssl.SSLContext:
        """Raises OSError (`ssl.SSLError` is one) if the files cannot be used and never could."""
        stamp = tuple(_stamp(path) for path in (*files, *_system_bundle()))
        made = self._made.get(files)
        if made is not None and made[0] == stamp:
            return made[1]
        try:
            context = context_of(files)
        except OSError as error:
            if made is None:
                raise
            log.error(
                "replaced TLS files cannot be used, the old ones stay",
                extra={"files": files, "why": error},
            )
            context = made[1]
        self._made[files] = stamp, context
        return context


def context_of(files: Files) -> ssl.SSLContext:
    """A context that trusts `ca_file`, or else the system, and shows the client certificate if there is one."""
    ca_file, cert_file, key_file = files
    context = ssl.create_default_context(cafile=ca_file)
    if cert_file:
        context.load_cert_chain(
            cert_file, key_file, password=lambda: ""
        )  # an encrypted key is an error, no prompt
    return context


def _system_bundle() -> tuple[str | None, str | None]:
    paths = ssl.get_default_verify_paths()
    return paths.cafile, paths.capath


def _stamp(path: str | None) -> tuple[int, int, int] | None:
    if path is None:
        return None
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size
