"""Errors in Anthropic's form."""

import json
from typing import Any

import pytest

from nexus.dialects.anthropic.errors import error_body


def error(message: str, code: str, *, param: str | None = None) -> dict[str, Any]:
    body = json.loads(error_body(message, status=400, code=code, param=param))
    found: dict[str, Any] = body["error"]
    return found


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("9 of 8 tokens", "prompt is too long: 9 of 8 tokens"),
        ("Backend a: Prompt is too long", "Backend a: Prompt is too long"),
    ],
)
def test_a_context_that_is_too_long_has_anthropics_words(message, told):
    assert error(message, "context_exceeded")["message"] == told
    assert error(message, "backend_4xx")["message"] == message


def test_a_refused_thread_is_known_by_its_details():
    details = {"error_code": "thread_unsupported_request"}
    assert error("no", "not_translatable", param="thread")["details"] == details
    assert "details" not in error("no", "not_translatable", param="container")
    assert "details" not in error("no", "invalid_request", param="thread")
