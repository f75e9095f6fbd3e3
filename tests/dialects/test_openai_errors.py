"""Errors in OpenAI's form."""

import json

from nexus.dialects.openai.errors import error_body


def test_form():
    body = json.loads(
        error_body("why", status=503, code="no_backend", context={"eta_seconds": None})
    )
    assert body == {
        "error": {"message": "why", "type": "server_error", "param": None, "code": "no_backend"},
        "context": {"eta_seconds": None},
    }
