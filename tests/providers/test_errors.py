"""Whose fault a backend's error is: every rule of the table, by what real servers send."""

import json
import time

import pytest

from nexus.errors import FAULTS, Blame
from nexus.providers.errors import (
    RULES,
    classify,
    fault_within_stream,
    message_of,
    printable,
    rule_for,
    status_for_client,
)


def openai(message: str, *, kind: str = "", code: str | int | None = None) -> bytes:
    return json.dumps(
        {"error": {"message": message, "type": kind, "param": None, "code": code}}
    ).encode()


def detail(value) -> bytes:
    return json.dumps({"detail": value}).encode()


NGINX_503 = b"<html>\r\n<head><title>503 Service Temporarily Unavailable</title></head>\r\n</html>"
OWN, CLIENTS = {}, {"own_key": False}
CASES = [
    # (status, body, what else is known, the row, the status that the client gets where the response
    # is passed on)
    (400, openai("too long", code="context_length_exceeded"), OWN, "context_exceeded", 400),
    *(
        (400, openai(message), OWN, "context_exceeded", 400)
        for message in (
            "This model's maximum prompt length is 8 but the request contains 9 tokens.",
            "Input length 9 exceeds the maximum allowed input length of 8 tokens",
            "Please reduce the length of the messages or completion.",
            "prompt token count of 9 exceeds the limit of 8",
            "invalid params, context window exceeds limit (2013)",
            "Invalid request: Your request exceeded model token limit: 8 (requested: 9)",
            "Range of input length should be [1, 8]",
            "Prompt exceeds max length",
            "Input tokens exceed the configured limit of 8 tokens.",
            "The model is loaded with context length of only 8 tokens",
            "Prompt has 9 tokens, but the configured context size is 8 tokens",
            "prompt too long; exceeded max context length by 1 tokens",
        )
    ),
    *(
        (400, openai(message), OWN, "backend_refused_key", 400)
        for message in (
            "Your credit balance is too low to access the Anthropic API.",
            "Insufficient balance",
            "API key not valid. Please pass a valid API key.",
            "API key expired. Please renew the API key.",
            "Incorrect API key provided: xa***.",
            "This organization has been disabled.",
            "You have reached your specified API usage limits. You will regain access on …",
            "Access denied, please make sure your account is in good standing.",
        )
    ),
    (400, openai("Invalid API key"), CLIENTS, "backend_refused_client", 400),
    (
        400,
        b"[%b]" % openai("The input token count (9) exceeds the maximum number of tokens (8)."),
        OWN,
        "context_exceeded",
        400,
    ),
    (
        400,
        openai(
            "request (9412 tokens) exceeds the available context size (8192 tokens), try "
            "increasing "
            "it",
            kind="exceed_context_size_error",
            code=400,
        ),
        OWN,
        "context_exceeded",
        400,
    ),
    (
        400,
        openai(
            "This model's maximum context length is 1024 tokens. However, you requested 1200 "
            "tokens.",
            kind="BadRequestError",
            code=400,
        ),
        OWN,
        "context_exceeded",
        400,
    ),
    (400, b'{"error":"the input length exceeds the context length"}', OWN, "context_exceeded", 400),
    (
        400,
        openai("prompt is too long: 210000 tokens > 200000 maximum"),
        OWN,
        "context_exceeded",
        400,
    ),
    (
        413,
        b'{"error":"`inputs` must have less than 512 tokens. Given: '
        b'900","error_type":"Validation"}',
        OWN,
        "context_exceeded",
        413,
    ),
    (
        422,
        openai("Input is longer than the model's context length (4096 tokens)"),
        OWN,
        "context_exceeded",
        422,
    ),
    (
        500,
        openai("Requested tokens (1037) exceed context window of 512"),
        OWN,
        "context_exceeded",
        400,
    ),
    (
        500,
        openai("input (700 tokens) is too large to process. increase the physical batch size"),
        OWN,
        "context_exceeded",
        400,
    ),
    (508, openai("A backend's url leads back to this gateway."), OWN, "loop_detected", 0),
    (301, b"", OWN, "backend_redirects", 0),
    (308, b"<html>moved</html>", OWN, "backend_redirects", 0),
    (401, openai("Incorrect API key provided"), OWN, "backend_refused_key", 401),
    (401, openai("Incorrect API key provided"), CLIENTS, "backend_refused_client", 401),
    (402, openai("Insufficient credits"), OWN, "backend_refused_key", 402),
    (402, openai("Insufficient credits"), CLIENTS, "backend_refused_client", 402),
    (403, openai("Project does not have access to model"), OWN, "backend_refused_key", 403),
    (
        404,
        openai('model "qwen3" not found, try pulling it first', kind="not_found_error"),
        OWN,
        "backend_lacks_model",
        404,
    ),
    (404, detail("Not Found"), OWN, "backend_lacks_model", 404),
    (
        400,
        openai("Invalid model name passed in model=x. Call `/v1/models`"),
        OWN,
        "backend_lacks_model",
        400,
    ),
    (429, openai("Rate limit reached"), OWN, "backend_rate_limited", 429),
    (429, openai("Rate limit reached"), CLIENTS, "backend_limits_client", 429),
    (408, b"", OWN, "backend_rate_limited", 408),
    (400, openai("messages: Field required"), OWN, "backend_4xx", 400),
    (413, b"<html><title>413 Request Entity Too Large</title></html>", OWN, "backend_4xx", 413),
    (
        422,
        detail(
            [
                {
                    "loc": ["body", "n"],
                    "msg": "Input should be a valid integer",
                    "input": "cuda out of memory",
                }
            ]
        ),
        OWN,
        "backend_4xx",
        422,
    ),
    (
        501,
        openai(
            "This server does not support embeddings. Start it with `--embeddings`",
            kind="not_supported_error",
            code=501,
        ),
        OWN,
        "backend_4xx",
        400,
    ),
    (501, b"", OWN, "backend_4xx", 400),
    (505, b"", OWN, "backend_4xx", 400),
    (503, NGINX_503, {"retry_after": True}, "backend_busy", 503),
    (503, NGINX_503, OWN, "backend_5xx", 0),
    (
        503,
        b"upstream connect error or disconnect/reset before headers. reset reason: connection "
        b"failure",
        OWN,
        "backend_5xx",
        0,
    ),
    (503, openai("Loading model", kind="unavailable_error", code=503), OWN, "backend_busy", 503),
    (
        503,
        b'{"error":"server busy, please try again.  maximum pending requests exceeded"}',
        OWN,
        "backend_busy",
        503,
    ),
    (503, b"", OWN, "backend_busy", 503),
    (529, openai("Overloaded", kind="overloaded_error"), OWN, "backend_busy", 529),
    (500, openai("The model is overloaded"), OWN, "backend_busy", 503),
    (500, openai("CUDA out of memory. Tried to allocate 2 GiB"), OWN, "backend_5xx", 0),
    (500, openai("CUDA error: operation is not supported on this device"), OWN, "backend_5xx", 0),
    (
        500,
        openai(
            "EngineCore encountered an issue. See stack trace (above) for the root cause.",
            kind="InternalServerError",
            code=500,
        ),
        OWN,
        "backend_5xx",
        0,
    ),
    (500, openai("llama runner process has terminated: exit status 2"), OWN, "backend_5xx", 0),
    (
        500,
        openai(
            "image input is not supported - hint: if this is unexpected, you may need to provide "
            "the "
            "mmproj",
            kind="server_error",
            code=500,
        ),
        OWN,
        "backend_4xx",
        400,
    ),
    (
        500,
        openai(
            "Llama model must be created with embedding=True to call this method",
            kind="internal_server_error",
        ),
        OWN,
        "backend_4xx",
        400,
    ),
    (
        500,
        openai(
            "\n----\nError: Jinja Exception: Conversation roles must alternate "
            "user/assistant/user/…",
            kind="server_error",
            code=500,
        ),
        OWN,
        "backend_4xx",
        400,
    ),
    (500, openai("no", kind="invalid_request_error"), OWN, "backend_4xx", 400),
    (
        500,
        openai("create_completion() got an unexpected keyword argument 'foo'"),
        OWN,
        "backend_4xx",
        400,
    ),
    (500, openai("unsupported operand type(s) for +: 'int' and 'NoneType'"), OWN, "backend_5xx", 0),
    (500, b"Internal Server Error", OWN, "backend_5xx", 0),
    (500, b"", OWN, "backend_5xx", 0),
    (502, b"<html><title>502 Bad Gateway</title></html>", OWN, "backend_5xx", 0),
    (504, b"", OWN, "backend_5xx", 0),
    (599, openai("x"), OWN, "backend_5xx", 0),
]


@pytest.mark.parametrize(
    ("status", "body", "known", "fault", "shown"),
    CASES,
    ids=lambda value: str(value)[:60].replace("\\", ""),
)
def test_error(status, body, known, fault, shown):
    found = classify(status, body, **known)
    assert found.code == fault
    assert (found.status is None) == bool(shown), "passed on, or with a status of its own"
    if shown:
        assert status_for_client(found, status) == shown
    if found.blame is Blame.CLIENT and not known:
        assert not found.retry, "a client's own mistake is not tried elsewhere"


def test_every_rule_decides_something():
    decided = [rule_for(status, body, **known) for status, body, known, *_ in CASES]
    assert [rule for rule in RULES if not any(rule is found for found in decided)] == []


def test_every_rule_names_a_row():
    assert {rule.fault for rule in RULES} <= FAULTS.keys()


@pytest.mark.parametrize("status", [100, 204, 600, 999])
def test_what_is_no_errors_status_is_no_response(status):
    assert rule_for(status) is None
    assert classify(status).code == "malformed_answer"


@pytest.mark.parametrize(
    ("status", "body", "known", "fault"),
    [
        (400, openai("bad"), OWN, "stream_error"),
        (500, openai("EngineCore"), OWN, "stream_error"),
        (429, openai("slow down"), OWN, "stream_error_busy"),
        (529, openai("overloaded"), OWN, "stream_error_busy"),
        (429, openai("slow down"), CLIENTS, "stream_error_limits_client"),
    ],
)
def test_error_within_a_stream(status, body, known, fault):
    assert fault_within_stream(status, body, **known).code == fault


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (openai("why"), "why"),
        (b'{"error":"why"}', "why"),
        (b'{"message":"why"}', "why"),
        (b'{"object":"error","message":"why","code":400}', "why"),
        (detail("why"), "why"),
        (detail([{"msg": "first", "input": "secret"}, {"msg": "second"}]), "first; second"),
        (b'["why"]', "['why']"),
        (b"[%b]" % openai("why"), "why"),
        (b"plain\ntext\x1b[2J", "plain text [2J"),
        (NGINX_503, "an HTML page, '503 Service Temporarily Unavailable'"),
        (b"<p>", "an HTML page"),
        (b"", ""),
        (b'{"error":{"message":"cut sh', '{"error":{"message":"cut sh'),
        (b"[" * 100_000, "[" * 300 + "…"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_message(body, message):
    assert message_of(body) == message


def test_printable_keeps_one_short_line():
    assert printable("a\r\n\x9b\u2028\u202eb" + "x" * 5000) == "a b" + "x" * 297 + "…"


def test_the_work_for_the_title_of_a_page_is_linear():
    started = time.process_time()
    assert message_of(b"<html><title>" + b" " * 4000) == "an HTML page"
    assert time.process_time() - started < 1
    assert message_of(b"<title> \n A title  </title>") == "an HTML page, 'A title'"
