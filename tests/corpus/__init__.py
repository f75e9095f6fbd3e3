"""Streams as backends send them, each with what it says of itself: by hand after documentation,
or as real servers sent them (`recorded/`: head and body, without the framing in chunks)."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Recording:
    """`usage_event`: the bytes that a client which did not ask for the usage must not see; it sees
    `usage_shown` instead.

    `head`: that of the response, its coding apart.
    """

    name: str
    data: bytes
    usage: tuple[int | None, int | None] | None = None
    usage_event: bytes = b""
    counted: int = 0
    events: int = 0
    finished: bool = True
    error: str | None = None
    details: tuple[int | None, int | None] = (None, None)
    usage_shown: bytes = b""
    head: bytes = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
    pause_at: int = 0
    """Where a backend pauses: what comes after is no longer together with the first content."""

    @property
    def shown(self) -> bytes:
        """What a client gets that did not ask for the usage."""
        return (
            self.data.replace(self.usage_event, self.usage_shown, 1)
            if self.usage_event
            else self.data
        )


def _event(data: Any, end: str = "\n\n", **more: str) -> bytes:
    text = (
        data
        if isinstance(data, str)
        else json.dumps(data, separators=(",", ":"), ensure_ascii=False)
    )
    line_end = end[: len(end) // 2]
    lines = [f"{name}: {value}" for name, value in more.items()] + [f"data: {text}"]
    return (line_end.join(lines) + end).encode()


def _chunk(delta: dict[str, Any] | None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    choices = (
        []
        if delta is None
        else [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]
    )
    return {
        "id": "chatcmpl-7",
        "object": "chat.completion.chunk",
        "created": 1700000000,
        "model": "m",
        "choices": choices,
        **more,
    }


USAGE = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
DONE = b"data: [DONE]\n\n"


def _openai() -> Recording:
    usage = _event(
        _chunk(
            None,
            usage={
                **USAGE,
                "prompt_tokens_details": {"cached_tokens": 5, "audio_tokens": 0},
                "completion_tokens_details": {"reasoning_tokens": 2, "audio_tokens": 0},
            },
        )
    )
    body = b"".join(
        _event(
            _chunk(
                delta,
                finish,
                usage=None,
                service_tier="default",
                system_fingerprint="fp_1",
                obfuscation="xK2",
            )
        )
        for delta, finish in (
            ({"role": "assistant", "content": "", "refusal": None}, None),
            ({"content": "Grüße"}, None),
            ({"content": ' aus "data: " 🌍'}, None),
            ({"content": "!\n"}, None),
            ({}, "stop"),
        )
    )
    return Recording(
        "openai with usage",
        body + usage + DONE,
        usage=(9, 4),
        usage_event=usage,
        counted=3,
        events=6,
        details=(5, 2),
    )


def _openai_without_usage() -> Recording:
    body = b"".join(
        _event(_chunk(delta, finish))
        for delta, finish in (
            ({"role": "assistant", "content": ""}, None),
            ({"content": "a"}, None),
            ({"content": "b"}, None),
            ({}, "stop"),
        )
    )
    return Recording("openai without usage", body + DONE, counted=2, events=4)


def _tool_calls() -> Recording:
    def call(**function: str) -> dict[str, Any]:
        return {
            "tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": function}]
        }

    body = b"".join(
        _event(_chunk(delta, finish))
        for delta, finish in (
            ({"role": "assistant", "content": None}, None),
            (call(name="weather", arguments=""), None),
            (call(arguments='{"error":'), None),
            (call(arguments='"usage"}'), None),
            ({}, "tool_calls"),
        )
    )
    return Recording("tool calls", body + DONE, counted=3, events=5)


def _refusal() -> Recording:
    body = b"".join(
        _event(_chunk(delta, finish))
        for delta, finish in (
            ({"role": "assistant", "refusal": ""}, None),
            ({"refusal": "I can't."}, None),
            ({}, "stop"),
        )
    )
    return Recording("refusal", body + DONE, counted=1, events=3)


def _vllm_reasoning() -> Recording:
    usage = _event(_chunk(None, usage=USAGE))
    body = b"".join(
        _event(_chunk(delta, finish))
        for delta, finish in (
            ({"role": "assistant", "content": ""}, None),
            ({"reasoning_content": "Hm"}, None),
            ({"reasoning_content": ", so"}, None),
            ({"content": "Yes"}, None),
            ({"content": "."}, "length"),
        )
    )
    return Recording(
        "vllm reasoning", body + usage + DONE, usage=(9, 4), usage_event=usage, counted=4, events=6
    )


def _ollama() -> Recording:
    """The role comes with the first content, and its usage event has an empty list of choices as
    OpenAI's."""
    usage = _event({**_chunk(None, usage=USAGE), "system_fingerprint": "fp_ollama"})
    body = b"".join(
        _event(
            {
                **_chunk({"role": "assistant", "content": text}, finish),
                "system_fingerprint": "fp_ollama",
            }
        )
        for text, finish in (("The", None), (" sky", None), ("", "stop"))
    )
    return Recording(
        "ollama", body + usage + DONE, usage=(9, 4), usage_event=usage, counted=2, events=4
    )


def _llamacpp() -> Recording:
    """The usage comes with timings; a comment while it works on the prompt."""
    timings = {"prompt_n": 9, "predicted_per_second": 48.1}
    usage = _event(_chunk(None, usage=USAGE, timings=timings))
    shown = _event(_chunk({}, timings=timings))
    body = b": loading\n\n" + b"".join(
        _event(_chunk(delta, finish))
        for delta, finish in (
            ({"role": "assistant", "content": None}, None),
            ({"content": "Hi"}, None),
            ({}, "stop"),
        )
    )
    return Recording(
        "llama.cpp",
        body + usage + DONE,
        usage=(9, 4),
        usage_event=usage,
        usage_shown=shown,
        counted=1,
        events=4,
    )


def _lmstudio() -> Recording:
    """The usage in the event that says why it ends, which the client sees: it is more than the
    usage."""
    body = b"".join(
        _event(data)
        for data in (
            _chunk({"role": "assistant", "content": "One"}),
            _chunk({"content": " two"}),
            _chunk({}, "stop", usage=USAGE, stats={}),
        )
    )
    return Recording("lm studio", body + DONE, usage=(9, 4), counted=2, events=3)


def _crlf() -> Recording:
    usage = _event(_chunk(None, usage=USAGE), "\r\n\r\n", id="4", event="message")
    body = b"".join(
        _event(_chunk(delta, finish), "\r\n\r\n", event="message")
        for delta, finish in (({"role": "assistant"}, None), ({"content": "é"}, None), ({}, "stop"))
    )
    return Recording(
        "crlf",
        body + usage + b"data: [DONE]\r\n\r\n",
        usage=(9, 4),
        usage_event=usage,
        counted=1,
        events=4,
    )


def _cr_and_no_end() -> Recording:
    body = _event(_chunk({"role": "assistant"}), "\r\r") + _event(_chunk({"content": "x"}), "\r\r")
    return Recording("cr, and no last empty line", body + b"data: [DONE]", counted=1, events=2)


def _several_data_lines() -> Recording:
    pretty = json.dumps(_chunk({"content": "x"}), indent=1)
    event = "".join(f"data: {line}\n" for line in pretty.split("\n")).encode() + b"\n"
    return Recording("several data lines", event + event + DONE, counted=2, events=2)


def _large() -> Recording:
    body = (
        _event(_chunk({"role": "assistant"}))
        + _event(_chunk({"content": "y" * 200_000}))
        + _event(_chunk({}, "stop"))
    )
    usage = _event(_chunk(None, usage=USAGE))
    return Recording(
        "a large event", body + usage + DONE, usage=(9, 4), usage_event=usage, counted=1, events=4
    )


def _legacy() -> Recording:
    body = b"".join(
        _event({"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m",
                "choices": [{"index": 0, "text": text, "logprobs": None, "finish_reason": finish}]})
        for text, finish in (("One", None), (" two", "stop"))
    )  # fmt: skip
    return Recording("completions", body + DONE, counted=2, events=2)


def _error(
    name: str, before: bytes, error: bytes, message: str, *, events: int, end: bytes = b""
) -> Recording:
    return Recording(
        name,
        before + error + end,
        counted=1,
        events=events,
        finished=bool(end),
        error=message,
        pause_at=len(before),
    )


def _errors() -> list[Recording]:
    role, said = _event(_chunk({"role": "assistant"})), _event(_chunk({"content": "x"}))
    openai = {
        "error": {
            "message": "The server had an error",
            "type": "server_error",
            "param": None,
            "code": None,
        }
    }
    vllm = {
        "object": "error",
        "message": "out of memory",
        "type": "BadRequestError",
        "param": None,
        "code": 400,
    }
    return [
        _error("error in band", role + said, _event(openai), "The server had an error", events=3),
        _error("vllm's error in band", said, _event(vllm), "out of memory", events=2, end=DONE),
        _error(
            "lm studio's error event",
            said,
            _event({"message": "model crashed"}, event="error"),
            "model crashed",
            events=2,
        ),
    ]


def _no_end() -> Recording:
    body = b"".join(
        _event(_chunk(delta))
        for delta in ({"role": "assistant"}, {"content": "x"}, {"content": "y"})
    )
    return Recording("no end", body, counted=2, events=3, finished=False)


def _no_done() -> Recording:
    body = _event(_chunk({"content": "x"})) + _event(_chunk({}, "stop"))
    return Recording("a reason but no [DONE]", body, counted=1, events=2)


def _litellm() -> Recording:
    """No `finish_reason` key in between, and the usage beside one empty choice."""
    usage = _event(
        {
            "id": "c",
            "object": "chat.completion.chunk",
            "choices": [{"index": 0, "delta": {}}],
            "usage": USAGE,
        }
    )
    body = b"".join(
        _event(
            {
                "id": "c",
                "object": "chat.completion.chunk",
                "choices": [{"index": 0, "delta": delta, **more}],
            }
        )
        for delta, more in (
            ({"role": "assistant", "content": "Hi"}, {}),
            ({"content": "!"}, {}),
            ({}, {"finish_reason": "stop"}),
        )
    )
    return Recording(
        "litellm", body + usage + DONE, usage=(9, 4), usage_event=usage, counted=2, events=4
    )


def _llamacpp_progress() -> Recording:
    """With `return_progress`; no event with the role, where the first token is half a character;
    its `sse_ping`."""
    progress = {"total": 9, "cache": 0, "processed": 4, "time_ms": 12}
    body = b":\n\n" + b"".join(
        (
            _event(_chunk({"role": "assistant", "content": None}, prompt_progress=progress)),
            _event(_chunk({"content": "é"})),
            _event(_chunk({}, "stop", timings={"cache_n": 5, "prompt_n": 4, "predicted_n": 2})),
        )
    )
    return Recording(
        "llama.cpp's progress", body + DONE, usage=(9, 2), counted=1, events=3, details=(5, None)
    )


def _not_strict() -> Recording:
    """What Python's and Go's encoders write, and strict readers refuse."""
    body = (
        b"\xef\xbb\xbf"
        b'data: {"choices":[{"index":0,"delta":{"content":"\\ud83d"},'
        b'"logprobs":{"content":[{"logprob":-Infinity}]}}]}\n\n'
        b'data: {"choices":[{"index":0,"delta":{"content":"\\ude00"},'
        b'"logprobs":{"content":[{"logprob":NaN}]}}]}\n\n'
        b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop",'
        b'"stop_reason":"\\ud83d"}],"score":NaN}\n\n'
    )
    usage = _event(
        '{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":4},"mean_logprob":NaN}'
    )
    return Recording(
        "json that is not strict",
        body + usage + DONE,
        usage=(9, 4),
        usage_event=usage,
        usage_shown=usage,
        counted=2,
        events=4,
    )


def _loose() -> Recording:
    """No space after the colon, other fields, and lines that end with CR and CRLF."""
    end = b'data:{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\r\n\r\n'
    body = b'event:message\rid:1\rdata:{"choices":[{"index":0,"delta":{"content":"x"}}]}\r\r' + end
    return Recording("no space after the colon", body + b"data:[DONE]\n\n", counted=1, events=2)


def recorded(name: str, **told: Any) -> Recording:
    head, _, data = (
        (Path(__file__).parent / "recorded" / f"{name}.http").read_bytes().partition(b"\n\n")
    )
    lines = [
        line
        for line in head.split(b"\n")
        if not line.lower().startswith((b"transfer-encoding", b"connection"))
    ]
    pause_at = data.index(b'data: {"error"') if "error" in told else 0
    return Recording(name, data, head=b"\r\n".join(lines) + b"\r\n", pause_at=pause_at, **told)


def _hidden(recording: Recording, shown: str = "") -> Recording:
    """Its client did not ask for the usage; `shown` is what it gets instead, less the event's
    beginning."""
    [event] = [
        event + b"\n\n" for event in recording.data.split(b"\n\n") if b'"choices":[]' in event
    ]
    usage_shown = b""
    if shown:
        choice = b'"choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":null}]'
        usage_shown = event.replace(b'"choices":[]', choice)
        at = usage_shown.index(b',"usage":')
        usage_shown = usage_shown[:at] + usage_shown[usage_shown.index(shown.encode(), at) :]
    return replace(recording, usage_event=event, usage_shown=usage_shown)


def _of_real_servers() -> list[Recording]:
    return [
        _hidden(
            recorded(
                "llamacpp-b11549-usage-asked",
                usage=(14, 4),
                counted=4,
                events=7,
                details=(13, None),
            ),
            ',"timings"',
        ),
        recorded(
            "llamacpp-b11549-usage-not-asked",
            usage=(14, 4),
            counted=4,
            events=6,
            details=(13, None),
        ),
        recorded(
            "llamacpp-b11549-completions", usage=(2, 4), counted=4, events=5, details=(0, None)
        ),
        recorded("llama-cpp-python-0.3.36-usage-asked", counted=3, events=5),
        _hidden(recorded("ollama-2026-08-21-usage-asked", usage=(14, 3), counted=3, events=5)),
        recorded("transformers-serve-5.19", usage=(14, 3), counted=2, events=4),
        _hidden(
            recorded("vllm-0.32-usage-asked", usage=(14, 3), counted=3, events=5),
            ',"system_fingerprint"',
        ),
        recorded(
            "vllm-0.32-engine-killed",
            counted=9,
            events=11,
            error="EngineCore encountered an issue. See stack trace (above) for the root cause.",
        ),
        recorded(
            "litellm-1.105-upstream-killed",
            counted=3,
            events=5,
            finished=False,
            error="litellm.APIConnectionError: APIConnectionError: OpenAIException - Response "
            "payload "
            "is "
            "not completed: "
            "<TransferEncodingError: 400, message='Not enough data to satisfy transfer length "
            "header.'>",
        ),
    ]


RECORDINGS = [
    _openai(),
    _openai_without_usage(),
    _tool_calls(),
    _refusal(),
    _vllm_reasoning(),
    _ollama(),
    _llamacpp(),
    _lmstudio(),
    _crlf(),
    _cr_and_no_end(),
    _several_data_lines(),
    _large(),
    _legacy(),
    _no_end(),
    _no_done(),
    *_errors(),
    _litellm(),
    _llamacpp_progress(),
    _not_strict(),
    _loose(),
    *_of_real_servers(),
]
