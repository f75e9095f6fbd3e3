"""Certificates made by openssl, as a private CA hands them out."""

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Certificate:
    """A certificate and its key, both in PEM form."""

    cert: Path
    key: Path

    def both(self) -> Path:
        """One file with both."""
        file = self.cert.with_suffix(".both.pem")
        file.write_text(self.cert.read_text() + self.key.read_text())
        return file


class Authority:
    """A CA whose own certificate is `ca`."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory, self._name = directory, name
        self._made = Certificate(directory / f"{name}.pem", directory / f"{name}.key")
        _openssl(
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
            "-subj",
            f"/CN={name}",
            "-keyout",
            self._made.key,
            "-out",
            self._made.cert,
        )
        self.ca = self._made.cert

    def issue(self, subject: str, names: str = "DNS:localhost,IP:127.0.0.1") -> Certificate:
        base = self._directory / f"{self._name}-{subject}"
        made, request = (
            Certificate(base.with_suffix(".pem"), base.with_suffix(".key")),
            base.with_suffix(".csr"),
        )
        extensions = base.with_suffix(".ext")
        extensions.write_text(f"subjectAltName={names}\n")
        _openssl(
            "req",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-subj",
            f"/CN={subject}",
            "-keyout",
            made.key,
            "-out",
            request,
        )
        _openssl(
            "x509",
            "-req",
            "-in",
            request,
            "-CA",
            self._made.cert,
            "-CAkey",
            self._made.key,
            "-CAcreateserial",
            "-days",
            "2",
            "-extfile",
            extensions,
            "-out",
            made.cert,
        )
        return made


def _openssl(*words: object) -> None:
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)
