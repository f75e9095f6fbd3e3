"""Classifies a backend's error by one table over its status, headers, and words. Pure functions.

Servers report a client's mistake as 500 or 501, their own overload as 500 or 503, and a context
that is too long under five statuses. The first rule of `RULES` that matches an error decides which
row of the table of faults it is.
"""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import dataclass
from typing import Any

import msgspec

from nexus.errors import FAULTS, Blame, Fault

_LONGEST_MESSAGE = 300
_LOOKED_AT = 4096
"""Bytes of an error's text that are searched for words."""
_TITLE = re.compile(rb"<title>\s*+([^<]{1,200}?)\s*</title>", re.IGNORECASE)
_RETRY_DELAY = re.compile(rb'"retryDelay"\s*+:\s*+"([0-9]{1,6}(?:\.[0-9]{1,9})?)s"')
_CLIENT_ERRORS, _SERVER_ERRORS = range(400, 500), range(500, 600)


def _any_of(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns))


_CONTEXT_EXCEEDED = _any_of(
    r"context_length_exceeded",
    r"exceed_context_size",
    r"context.?window.?exceeded",
    r"maximum (?:context|model) length",
    r"(?:exceeds?|exceeded|than) (?:the |its )?(?:model'?s? )?"
    r"(?:max(?:imum)? |available |total )*context",
    r"context (?:length|window|size) (?:was |is |has been )?exceeded",
    r"(?:prompt|input) is too long",
    r"too long for the .{0,20}context",
    r"too large to process",
    r"tokens to keep from the initial prompt",
    r"must have less than \d+ tokens",
    r"input token count .{0,20}exceeds the maximum",  # Google
    r"maximum prompt length",  # xAI
    r"maximum allowed input length",  # OpenRouter
    r"reduce the length of the (?:messages|prompt|input)",  # Groq, Cerebras
    r"prompt token count of \d+ exceeds",  # GitHub Copilot
    r"context window exceeds",  # MiniMax
    r"exceeded model token limit",  # Moonshot
    r"range of input length should be",  # DashScope
    r"prompt exceeds max length",  # Z.ai
    r"input tokens exceed",  # OpenAI
    r"context length of only",  # LM Studio
    r"configured context size",
    r"max_new_tokens` must be <=",
)
_LACKS_MODEL = _any_of(
    r"model_not_found", r"invalid model name", r"model .{1,200} (?:not found|does not exist)"
)
_REFUSES_ACCOUNT = _any_of(
    r"credit balance is too low",  # Anthropic
    r"insufficient balance",
    r"api key (?:is )?(?:not valid|not found|expired|invalid)",  # Google
    r"(?:incorrect|invalid) api key",  # xAI
    r"organization has been disabled",  # Anthropic
    r"reached your specified api usage limits",  # Anthropic
    r"organization_restricted",  # Groq
    r"account is in good standing",  # DashScope
    r"billing_hard_limit",  # OpenAI
)
_OVERLOADED = _any_of(
    r"overloaded",
    r"server busy",
    r"loading model",
    r"model is (?:still )?loading",
    r"queue is full",
    r"too many requests",
)
_OWN_FAILURE = _any_of(
    r"\bcuda\b",
    r"\bhip error",
    r"\brocm\b",
    r"\bnccl\b",
    r"\bggml",
    r"out of memory",
    r"device-side assert",
    r"engine ?(?:core|dead)",
    r"segmentation fault",
    r"runner process",
    r"connection (?:refused|reset|error)",
    r"upstream (?:connect|request)",
    r"no healthy upstream",
    r"\berrno\b",
    r"timed out",
)
_CLIENTS_MISTAKE = _any_of(
    r"invalid_request",
    r"badrequesterror",
    r"not_supported_error",
    r"notimplementederror",
    r"(?:does not|doesn't|do not) support",
    r"(?:is|are) not supported",
    r"not supported (?:by|for)",
    r"unsupported (?!operand)",
    r"must be (?:provided as|created with|between|greater|less|one of|an? )",
    r"chat template",
    r"jinja",
    r"roles must alternate",
    r"grammar",
    r"json.?schema",
    r"validation error",
    r"field required",
    r"invalid value",
    r"unexpected keyword argument",
    r"invalid (?:image|base64)",
    r"(?:load|decode|process|identify) image",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """Matches an error if all fields that are set match.

    Attributes:
        words: Searched in the error's message, type, and code, in lower case.
        page: It is an HTML page, so it comes from a server in front of the backend.
        clients_key: The request had the client's own key.
    """

    fault: str
    statuses: Container[int]
    words: re.Pattern[str] | None = None
    page: bool = False
    retry_after: bool = False
    clients_key: bool = False


# fmt: off
RULES: tuple[Rule, ...] = (
    Rule(fault="context_exceeded", statuses=(400, 413, 422, 500), words=_CONTEXT_EXCEEDED),
    Rule(fault="loop_detected", statuses=(508,)),
    Rule(fault="backend_redirects", statuses=range(300, 400)),
    Rule(fault="backend_refused_client", statuses=(401, 402, 403), clients_key=True),
    Rule(fault="backend_refused_key", statuses=(401, 402, 403)),
    Rule(
        fault="backend_refused_client", statuses=(400,), words=_REFUSES_ACCOUNT, clients_key=True
    ),
    Rule(fault="backend_refused_key", statuses=(400,), words=_REFUSES_ACCOUNT),
    Rule(fault="backend_lacks_model", statuses=(404,)),
    Rule(fault="backend_lacks_model", statuses=(400,), words=_LACKS_MODEL),
    Rule(fault="backend_limits_client", statuses=(429,), clients_key=True),
    Rule(fault="backend_rate_limited", statuses=(408, 429)),
    Rule(fault="backend_4xx", statuses=_CLIENT_ERRORS),
    Rule(fault="backend_4xx", statuses=(501, 505)),
    Rule(fault="backend_busy", statuses=(503, 529), retry_after=True),
    Rule(fault="backend_5xx", statuses=(503,), page=True),
    Rule(fault="backend_5xx", statuses=_SERVER_ERRORS, words=_OWN_FAILURE),
    Rule(fault="backend_busy", statuses=(503, 529)),
    Rule(fault="backend_busy", statuses=(500,), words=_OVERLOADED),
    Rule(fault="backend_4xx", statuses=_SERVER_ERRORS, words=_CLIENTS_MISTAKE),
    Rule(fault="backend_5xx", statuses=_SERVER_ERRORS),
)
# fmt: on


def rule_for(
    status: int, content: bytes = b"", *, retry_after: bool = False, own_key: bool = True
) -> Rule | None:
    """The first rule that matches; None if the status is no error.

    `retry_after`: the backend said when to retry. `own_key`: the request had no key of the client.
    """
    page, searched = is_page(content), None
    for rule in RULES:
        if status not in rule.statuses or (rule.page and not page):
            continue
        if (rule.retry_after and not retry_after) or (rule.clients_key and own_key):
            continue
        if rule.words is not None:
            if searched is None:
                searched = " ".join(_parts(content)).lower()
            if not rule.words.search(searched):
                continue
        return rule
    return None


def classify(
    status: int, content: bytes = b"", *, retry_after: bool = False, own_key: bool = True
) -> Fault:
    """The row of the table of faults for a backend's error; arguments as for `rule_for`."""
    rule = rule_for(status, content, retry_after=retry_after, own_key=own_key)
    return FAULTS[rule.fault if rule is not None else "malformed_answer"]


def status_for_client(fault: Fault, status: int) -> int:
    """The client's status for a backend's error: the backend's own if that describes the error."""
    if fault.blame is Blame.CLIENT and status >= 500:
        return 400
    return 503 if fault.blame is Blame.BUSY and status == 500 else status


def fault_within_stream(
    status: int, error: bytes = b"", *, own_key: bool = True, content: bool = True
) -> Fault:
    """The fault of an error with this status within a stream that has reached the client.

    After the first content the request cannot be wrong: vLLM, for example, reports all of its own
    failures there as 400. If the client has seen only pings, the error means what it says.
    """
    likened = classify(status, error, own_key=own_key)
    if likened.blame is Blame.BUSY:
        return FAULTS["stream_error_busy"]
    if likened.code == "backend_limits_client":
        return FAULTS["stream_error_limits_client"]
    return FAULTS[
        "stream_error" if content or likened.blame is not Blame.CLIENT else "stream_refused"
    ]


def retry_delay_s(content: bytes) -> float | None:
    """When an error of Google asks to be retried, which has no Retry-After; None if it does not."""
    found = _RETRY_DELAY.search(content)
    return None if found is None else float(found[1])


def is_page(content: bytes) -> bool:
    """Whether this is an HTML page."""
    return content[:256].lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"<"


def message_of(content: bytes) -> str:
    """The message in an error's body, as one printable line of at most 300 characters, or empty."""
    if is_page(content):
        title = _TITLE.search(content[:_LOOKED_AT])
        return printable(
            f"an HTML page, {title[1].decode(errors='replace')!r}" if title else "an HTML page"
        )
    return printable(_parts(content)[0])


def printable(text: str) -> str:
    """`text` as one line without control characters, shortened."""
    start = text[: 4 * _LONGEST_MESSAGE]
    line = " ".join("".join(c if c.isprintable() else " " for c in start).split())
    return line if len(line) <= _LONGEST_MESSAGE else line[:_LONGEST_MESSAGE] + "…"


def _parts(content: bytes) -> tuple[str, str, str]:
    """An error's (message, type, code), from `{"error": {…}}`, `{"error": "…"}`, `{"message":
    …}`, `{"detail": …}`; of anything else, its text."""
    try:
        body = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return content[:_LOOKED_AT].decode(errors="replace"), "", ""
    if isinstance(body, list) and len(body) == 1 and isinstance(body[0], dict):  # Google
        body = body[0]
    if not isinstance(body, dict):
        return str(body)[:_LOOKED_AT], "", ""
    error = body.get("error") or body
    if not isinstance(error, dict):
        return _text(error), "", ""
    message = (
        error.get("message") or error.get("detail") or error.get("error") or body.get("message")
    )
    return _text(message), str(error.get("type") or ""), str(error.get("code") or "")


def _text(value: Any) -> str:
    """A message; of FastAPI's list of what is wrong with a body the messages, without the input
    that they repeat."""
    if isinstance(value, list):
        messages = [
            str(entry.get("msg") or "") if isinstance(entry, dict) else str(entry)
            for entry in value[:5]
        ]
        return "; ".join(messages)[:_LOOKED_AT]
    return "" if value is None else str(value)[:_LOOKED_AT]
