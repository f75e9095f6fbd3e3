"""Describes why a backend cannot be reached: what happened, where, and what to do."""

from __future__ import annotations

import errno
import socket
import ssl

from nexus.http.address import Address
from nexus.http.resolver import ResolverTimeout

NO_NAME_SERVER = "no name server responds for"
"""Start of the reason if no name server responds; an unknown name has another reason."""
_REFUSED = {
    errno.ECONNREFUSED: "nothing listens there; start the server, or correct the url",
    errno.EHOSTUNREACH: "there is no route to it; check the network and the firewall",
    errno.ENETUNREACH: "there is no route to its network; check the network",
    errno.ECONNRESET: "it closed the connection at once; check its log",
    errno.EMFILE: "this process has no file descriptor left; raise its limit",
}
_TLS = (
    ("CERTIFICATE_REQUIRED", "it asks for a client certificate; name one in client_cert_file"),
    ("UNKNOWN_CA", "it does not trust our client certificate; check client_cert_file"),
    ("BAD_CERTIFICATE", "it does not accept our client certificate; check client_cert_file"),
    ("WRONG_VERSION_NUMBER", "it does not speak TLS at this port; is its url http://?"),
    ("HTTP_REQUEST", "it does not speak TLS at this port; is its url http://?"),
    ("RECORD_LAYER_FAILURE", "it does not speak TLS at this port; is its url http://?"),
    (
        "EOF",
        "it closed the connection; "
        "does it speak TLS there, or ask for a client certificate (client_cert_file)?",
    ),
)
_VERIFY = {
    10: "its certificate has expired; renew it there",
    18: "its certificate is signed by itself; name that certificate in ca_file",
    19: "its chain ends in a certificate that is not trusted; name its CA in ca_file",
    20: "the CA that signed its certificate is not known; name that CA in ca_file",
    21: "the CA that signed its certificate is not known; name that CA in ca_file",
    62: "its certificate is for another name; use a name that it is for in the url",
    64: "its certificate is not for this address; use a name that it is for in the url",
}
"""OpenSSL's codes (X509_V_ERR_…) → what they mean here."""


def reason(error: BaseException | None, address: Address) -> str:
    """A failure to connect, as the end of a sentence about the backend."""
    place = f"{f'[{address.host}]' if ':' in address.host else address.host}:{address.port}"
    match error:
        case ssl.SSLCertVerificationError():
            meaning = _VERIFY.get(error.verify_code, error.verify_message)
            return f"TLS with {place} failed: {meaning}"
        case ssl.SSLError():
            text = f"{error.reason or ''} {error}"
            meaning = next(
                (words for part, words in _TLS if part in text.upper()), str(error.reason or error)
            )
            return f"TLS with {place} failed: {meaning}"
        case ResolverTimeout():
            return f"{NO_NAME_SERVER} {address.host} in time; check the DNS"
        case socket.gaierror() if error.errno == socket.EAI_AGAIN:
            return f"{NO_NAME_SERVER} {address.host}; check the DNS"
        case socket.gaierror() | UnicodeError():
            return f"the name {address.host} is not known; correct the url, or the DNS"
        case TimeoutError():
            return f"{place} does not respond; check that it is up and that no firewall blocks it"
        case OSError():
            meaning = _REFUSED.get(error.errno or 0) or (error.strerror or str(error)).lower()
            return f"{place} cannot be reached: {meaning}"
    return f"{place} cannot be reached"
