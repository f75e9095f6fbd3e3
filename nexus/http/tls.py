"""TLS settings for connections to backends."""

from __future__ import annotations

import logging
import ssl
from pathlib import Path

log = logging.getLogger("nexus.proxy")

Files = tuple[str | None, str | None, str | None]
"""A backend's `ca_file`, `client_cert_file` and `client_key_file`."""
_FileVersion = tuple[int, int, int] | None
"""Modification time, inode and size; None if there is no file."""


class TlsContexts:
    """One TLS context for each set of files. It is rebuilt when one of its files was replaced.

    The next new connection, of a probe or of a request, then uses the new certificate.
    """

    def __init__(self) -> None:
        self._contexts: dict[Files, tuple[list[_FileVersion], ssl.SSLContext]] = {}

    def of(self, files: Files) -> ssl.SSLContext:
        """The context for these files.

        Replacements that cannot be used are logged, and the old context stays. Raises OSError
        (`ssl.SSLError` is one) if the first ones cannot be used.
        """
        system = ssl.get_default_verify_paths()
        versions = [_version(path) for path in (*files, system.cafile, system.capath)]
        cached = self._contexts.get(files)
        if cached is not None and cached[0] == versions:
            return cached[1]
        try:
            context = create_context(files)
        except OSError as error:
            if cached is None:
                raise
            log.error(
                "replaced TLS files cannot be used, the old ones stay",
                extra={"files": files, "why": error},
            )
            context = cached[1]
        self._contexts[files] = versions, context
        return context


def create_context(files: Files) -> ssl.SSLContext:
    """A context that trusts `ca_file`, or the system's CAs, and shows the client certificate."""
    ca_file, cert_file, key_file = files
    context = ssl.create_default_context(cafile=ca_file)
    # Set since Python 3.13: it refuses many private CAs, which nginx, curl and 3.12 accept.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if cert_file:
        # Without a password callback, OpenSSL would prompt for an encrypted key.
        context.load_cert_chain(cert_file, key_file, password=lambda: "")
    return context


def _version(path: str | None) -> _FileVersion:
    try:
        status = Path(path).stat() if path is not None else None
    except OSError:
        status = None
    return (status.st_mtime_ns, status.st_ino, status.st_size) if status is not None else None
