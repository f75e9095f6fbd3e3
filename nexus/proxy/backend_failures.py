"""What a backend's failed response, or an error in another one, means for a request."""

from __future__ import annotations

import json
import math

import msgspec

from nexus.dialects.base import AttemptDialect, ReportedError, Usage
from nexus.errors import FAULTS, PassedOn, RequestFailed
from nexus.http.headers import retry_after_s
from nexus.http.response_parser import ResponseParser
from nexus.providers.errors import (
    classify,
    is_page,
    message_of,
    printable,
    retry_delay_s,
    status_for_client,
)
from nexus.runtime.text import mask_key

JSON_HEADER = ("content-type", "application/json")


class BackendFailures(msgspec.Struct, frozen=True):
    """Makes a `RequestFailed` of what one backend sent. A key that it echoes is masked.

    Attributes:
        dialect: The protocol that the client speaks, or the translation into it.
        backend: Its name, for messages.
        key: The gateway's key for it; None if it needs none.
        own_key: Whether the request carried that key, and none of the client's.
        request_id: That of the request, for errors in the client's form.
        translated: Whether an error gets the client's form, because the backend's is another.
    """

    dialect: AttemptDialect
    backend: str
    key: str | None
    own_key: bool
    request_id: str
    translated: bool = False

    def of_response(
        self,
        response: ResponseParser,
        headers: list[tuple[str, str]],
        content: bytes,
        *,
        whole: bool,
    ) -> RequestFailed:
        """The failure of a response without a success status.

        `headers` are those that the client would get; `whole` says whether `content` is the whole
        body.
        """
        status, content = response.status, mask_key(content, self.key)
        readable = content if is_plain(response) else b""
        retry_s = retry_after_s(response.headers)
        if retry_s is None and (retry_s := retry_delay_s(readable)) is not None:
            headers = [field for field in headers if field[0] != "retry-after"]
            headers.append(("retry-after", str(math.ceil(retry_s))))
        fault = classify(status, readable, retry_after=retry_s is not None, own_key=self.own_key)
        message = f"Backend {self.backend} responded {status}"
        if fault.code == "backend_redirects":
            location = self._masked(response.header("location") or "")
            message += (
                f" and points to {printable(location) or 'nothing'}; "
                "its url in the configuration is not the right one."
            )
        else:
            reported = message_of(readable)
            message += f": {reported}" if reported else "."
        passes = self.dialect.PASSES_ERRORS and 400 <= status < 600 and whole and content
        if fault.status is not None and not passes:
            return RequestFailed(fault, message, retry_after_s=retry_s)
        headers = [(name, self._masked(value)) for name, value in headers]
        if not passes or self.translated:
            status = status_for_client(fault, status)
        if self.translated or not whole or not content:
            content = self._in_clients_form(message, status, fault.code)
            headers = self._headers_of_form(headers)
        passed_on = PassedOn(status, headers, content)
        return RequestFailed(fault, message, passed_on=passed_on, retry_after_s=retry_s)

    def of_reported_error(self, error: ReportedError) -> RequestFailed:
        """The failure of an error reported under a success status, before any content."""
        content = mask_key(error.body, self.key)
        message = f"Backend {self.backend}: {printable(self._masked(error.message))}"
        fault = classify(error.status, content, own_key=self.own_key)
        status = status_for_client(fault, error.status)
        if fault.status is not None:
            fault = FAULTS["error_event"]
            if not self.dialect.PASSES_ERRORS:
                return RequestFailed(fault, message)
        headers = [JSON_HEADER]
        if self.translated:
            content = self._in_clients_form(message, status, fault.code)
            headers = self._headers_of_form([])
        passed_on = PassedOn(status, headers, content)
        return RequestFailed(fault, message, passed_on=passed_on)

    def usage_in(
        self, response: ResponseParser, content: bytes, *, any_form: bool = False
    ) -> Usage | None:
        """The usage that a whole response with a success status reports.

        `any_form`: it may be something else than JSON.

        Raises `RequestFailed` if it reports an error, or cannot be a response.
        """
        if (error := self.dialect.error_in_response(content)) is not None:
            raise self.of_reported_error(error)
        usage = self.dialect.usage_in_response(content)  # this parses all of it, if there is one
        if usage is not None or any_form:
            return usage
        if flaw := _flaw(content, plain=is_plain(response)):
            raise RequestFailed(
                "malformed_answer",
                f"Backend {self.backend} responded {response.status} with {flaw}.",
            )
        return self.dialect.usage_in_response(content, lenient=True)

    def _in_clients_form(self, message: str, status: int, code: str) -> bytes:
        return self.dialect.error_body(
            message, status=status, code=code, request_id=self.request_id
        )

    def _headers_of_form(self, headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """The headers of an error in the client's form, in place of the backend's."""
        headers = [field for field in headers if not field[0].startswith("content-")]
        headers.append(JSON_HEADER)
        if (name := self.dialect.REQUEST_ID_HEADER) is not None:
            headers = [field for field in headers if field[0] != name]
            headers.append((name, self.request_id))
        return headers

    def _masked(self, text: str) -> str:
        return mask_key(text.encode(errors="replace"), self.key).decode()


def is_plain(response: ResponseParser) -> bool:
    """Whether the body is not encoded, so that it can be read."""
    return (response.header("content-encoding") or "identity").lower() == "identity"


def _flaw(content: bytes, *, plain: bool) -> str | None:
    """Why this cannot be a response; None if it can. JSON as lenient as servers write it (NaN)
    passes."""
    if not content or (plain and content.isspace()):
        return "no body"
    if not plain:
        return None
    try:
        msgspec.json.decode(content, type=msgspec.Raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        try:
            json.loads(content.decode("utf-8-sig", errors="replace"), strict=False)
        except (ValueError, RecursionError):
            if is_page(content):
                return message_of(content)
            return "what is not JSON, or only its beginning"
    return None
