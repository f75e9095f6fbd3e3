"""Errors in OpenAI's form."""

import json

import pytest

from nexus.dialects.openai.errors import error_body, error_in_response
from nexus.dialects.responses.events import error_event


def test_form():
    body = json.loads(
        error_body("why", status=503, code="no_backend", context={"eta_seconds": None})
    )
    assert body == {
        "error": {"message": "why", "type": "server_error", "param": None, "code": "no_backend"},
        "context": {"eta_seconds": None},
    }


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (404, 404),
        ("429", 429),
        (599, 599),
        (200, 500),
        ("302", 500),
        (999, 500),
        ("\u0664\u0660\u0660", 500),
    ],
)
def test_a_code_that_is_no_status_of_an_error_is_none(code, status):
    error = error_in_response(json.dumps({"error": {"message": "why", "code": code}}).encode())
    assert error is not None
    assert error.status == status


def test_a_context_that_is_too_long_has_openais_code():
    body = error_body("why", status=400, code="context_exceeded")
    assert json.loads(body)["error"]["code"] == "context_length_exceeded"
    event = error_event("why", status=400, code="context_exceeded")
    data = json.loads(event.partition(b"data: ")[2])
    assert data["code"] == data["error"]["code"] == "context_length_exceeded"
