"""Checks and formats addresses of the configuration."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from urllib.parse import urlsplit

from nexus.config.backend_records import BackendConfig

_APPENDED = (
    "/models",
    "/chat/completions",
    "/completions",
    "/embeddings",
    "/messages",
    "/responses",
)
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,252})")
_PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


def bracketed(host: str) -> str:
    """A host as in a URL: IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens at `host`."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def is_host(text: str) -> bool:
    """Whether it is an IP address, IPv6 without brackets, or looks like the name of a host."""
    try:
        return bool(ip_address(text))
    except ValueError:
        return _HOST.fullmatch(text) is not None


def reachable_host(host: str) -> str:
    """The host by which a server that listens at `host` can be reached from this machine."""
    return {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)


def url_to(host: str, port: int) -> str:
    """The URL by which a server that listens at `host` can be reached from this machine."""
    return f"http://{bracketed(reachable_host(host))}:{port}"


def listen_address(text: str) -> tuple[str, int]:
    """Host and port of `host:port`, with IPv6 in brackets. Raises ValueError."""
    host, _, port = text.rpartition(":")
    host = host.strip("[]")
    if not is_host(host) or not 0 <= int(port) <= 65535:
        raise ValueError(text)
    return host, int(port)


def url_problem(url: str) -> str | None:
    """What is wrong with a backend's URL, as the end of a sentence; None if it can be used."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        return f"it is no address ({error})"
    host = parts.hostname or ""
    if parts.scheme not in ("http", "https") or not host:
        return "it takes an address that starts with http:// or https:// and names a host"
    if parts.username or parts.password:
        return "it must not contain a key; name the variable that holds the key in api_key_env"
    if parts.query or parts.fragment:
        return "it takes scheme, host, port and path only; set a query with query = { … }"
    if not url.isprintable() or " " in url:
        return "it takes scheme, host, port and path only"
    if port == 0:
        return "it takes a port from 1 to 65535"
    if not url.isascii():
        return f"it takes ASCII only{_idna(host)}"
    try:
        host.encode("idna")
    except UnicodeError:
        return "its host is not a valid DNS name"
    return _literal_problem(host) or _path_problem(parts.path)


def _idna(host: str) -> str:
    try:
        return "" if host.isascii() else f"; write the host as {host.encode('idna').decode()}"
    except UnicodeError:
        return ""


def _literal_problem(host: str) -> str | None:
    try:
        literal = ip_address(host.replace("%25", "%"))
    except ValueError:
        return None
    if isinstance(literal, IPv6Address) and literal.is_link_local and not literal.scope_id:
        return f"a link-local address needs its interface, as in [{host}%eth0]"
    return None


def _path_problem(path: str) -> str | None:
    for end in _APPENDED:
        if path.rstrip("/").endswith(end):
            return f"it ends in {end}, which Nexus appends; remove that"
    return None


def backend_problems(backend: BackendConfig) -> Iterator[str]:
    """Problems of a backend's address and of its TLS files, each as `key = "value" …`."""
    if problem := url_problem(backend.url):
        yield f"url = {json.dumps(backend.url, ensure_ascii=False)} is not allowed; {problem}."
    path = backend.base_path or ""
    if not path.isascii() or not path.isprintable() or set(path) & set(" ?#"):
        yield f'base_path = "{path}" is not allowed; it takes a path such as "/v1", without query.'
    elif problem := _path_problem(path):
        yield f'base_path = "{path}" is not allowed; {problem}.'
    yield from _tls_problems(backend)


def _tls_problems(backend: BackendConfig) -> Iterator[str]:
    keys = ("ca_file", "client_cert_file", "client_key_file")
    given = {key: path for key in keys if (path := getattr(backend, key)) is not None}
    for key, path in given.items():
        if not backend.url.startswith("https://"):
            yield f'{key} = "{path}" has no effect, because url is not https://; change one.'
            return
        if problem := _file_problem(path):
            yield f'{key} = "{path}" cannot be used; {problem}.'
            return
    if "client_key_file" in given and "client_cert_file" not in given:
        yield f'client_key_file = "{given["client_key_file"]}" needs client_cert_file beside it.'
        return
    if not given:
        return
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if ca_file := given.get("ca_file"):
        try:
            context.load_verify_locations(ca_file)
        except ssl.SSLError:
            yield f'ca_file = "{ca_file}" cannot be used; it holds no certificate in PEM form.'
    if cert_file := given.get("client_cert_file"):
        key_file = given.get("client_key_file")
        try:
            context.load_cert_chain(cert_file, key_file, password=lambda: "")
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                problem = f"the key in {key_file or 'it'} is not the certificate's"
            elif key_file is None:
                problem = (
                    "it lacks the certificate or, without client_key_file, its unencrypted key "
                    "in PEM form"
                )
            else:
                problem = f"it, or {key_file}, is not in PEM form, or the key is encrypted"
            yield f'client_cert_file = "{cert_file}" cannot be used; {problem}.'


def _file_problem(path: str) -> str | None:
    if not path.startswith("/"):
        return "it takes an absolute path"
    try:
        with Path(path).open("rb"):
            return None
    except FileNotFoundError:
        return "there is no such file"
    except OSError as error:
        return f"it cannot be read ({error.strerror})"


def proxies_ignored(environ: Mapping[str, str]) -> str | None:
    """A warning if the environment names a proxy: Nexus always connects directly."""
    names = [name for name in _PROXY_VARIABLES if environ.get(name) or environ.get(name.lower())]
    if not names:
        return None
    return (
        f"{' and '.join(names)} in the environment {'has' if len(names) == 1 else 'have'} no "
        "effect: backends are reached directly, without a proxy."
    )
