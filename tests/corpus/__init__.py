"""Streams as backends send them, written by hand after their documentation, each with what it says of itself."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Recording:
    """`usage_event`: the bytes that a client which did not ask for the usage must not see."""

    name: str
    data: bytes
    usage: tuple[int | None, int | None] | None = None
    usage_event: bytes = b""
    counted: int = 0
    events: int = 0
    finished: bool = True
    error: str | None = None
    details: tuple[int | None, int | None] = (None, None)
    pause_at: int = 0
    """Where a backend pauses: what comes after is no longer together with the first content."""

    @property
    def shown(self) -> bytes:
        """What a client gets that did not ask for the usage."""
        return self.data.replace(self.usage_event, b"", 1) if self.usage_event else self.data


def _event(data: Any, end: str = "\n\n", **more: str) -> bytes:
    text = data if isinstance(data, str) else json.dumps(data, separators=(",", ":"), ensure_ascii=False)
    line_end = end[: len(end) // 2]
    lines = [f"{name}: {value}" for name, value in more.items()] + [f"data: {text}"]
    return (line_end.join(lines) + end).encode()


def _chunk(delta: dict[str, Any] | None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]
    return {
        "id": "chatcmpl-7", "object": "chat.completion.chunk", "created": 1700000000, "model": "m", "choices": choices, **more,
    }  # fmt: skip


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
        _event(_chunk(delta, finish, usage=None, service_tier="default", system_fingerprint="fp_1", obfuscation="xK2"))
        for delta, finish in (
            ({"role": "assistant", "content": "", "refusal": None}, None),
            ({"content": "Grüße"}, None),
            ({"content": ' aus "data: " 🌍'}, None),
            ({"content": "!\n"}, None),
            ({}, "stop"),
        )
    )
    return Recording(
        "openai with usage", body + usage + DONE, usage=(9, 4), usage_event=usage, counted=3, events=6, details=(5, 2)
    )


def _openai_without_usage() -> Recording:
    body = b"".join(
        _event(_chunk(delta, finish))
        for delta, finish in (({"role": "assistant", "content": ""}, None), ({"content": "a"}, None), ({"content": "b"}, None), ({}, "stop"))
    )  # fmt: skip
    return Recording("openai without usage", body + DONE, counted=2, events=4)


def _tool_calls() -> Recording:
    def call(**function: str) -> dict[str, Any]:
        return {"tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": function}]}

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
    return Recording("vllm reasoning", body + usage + DONE, usage=(9, 4), usage_event=usage, counted=4, events=6)


def _ollama() -> Recording:
    """The role comes with the first content, and its usage event has an empty list of choices as OpenAI's."""
    usage = _event({**_chunk(None, usage=USAGE), "system_fingerprint": "fp_ollama"})
    body = b"".join(
        _event({**_chunk({"role": "assistant", "content": text}, finish), "system_fingerprint": "fp_ollama"})
        for text, finish in (("The", None), (" sky", None), ("", "stop"))
    )
    return Recording("ollama", body + usage + DONE, usage=(9, 4), usage_event=usage, counted=2, events=4)


def _llamacpp() -> Recording:
    """The usage comes with timings; a comment while it works on the prompt."""
    usage = _event(_chunk(None, usage=USAGE, timings={"prompt_n": 9, "predicted_per_second": 48.1}))
    body = b": loading\n\n" + b"".join(
        _event(_chunk(delta, finish))
        for delta, finish in (({"role": "assistant", "content": None}, None), ({"content": "Hi"}, None), ({}, "stop"))
    )
    return Recording("llama.cpp", body + usage + DONE, usage=(9, 4), usage_event=usage, counted=1, events=4)


def _lmstudio() -> Recording:
    """The usage in the event that says why it ends, which the client sees: it is more than the usage."""
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
        "crlf", body + usage + b"data: [DONE]\r\n\r\n", usage=(9, 4), usage_event=usage, counted=1, events=4
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
        _event(_chunk({"role": "assistant"})) + _event(_chunk({"content": "y" * 200_000})) + _event(_chunk({}, "stop"))
    )
    usage = _event(_chunk(None, usage=USAGE))
    return Recording("a large event", body + usage + DONE, usage=(9, 4), usage_event=usage, counted=1, events=4)


def _legacy() -> Recording:
    body = b"".join(
        _event({"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m",
                "choices": [{"index": 0, "text": text, "logprobs": None, "finish_reason": finish}]})
        for text, finish in (("One", None), (" two", "stop"))
    )  # fmt: skip
    return Recording("completions", body + DONE, counted=2, events=2)


def _error(name: str, before: bytes, error: bytes, message: str, *, events: int, end: bytes = b"") -> Recording:
    return Recording(
        name, before + error + end, counted=1, events=events, finished=bool(end), error=message, pause_at=len(before)
    )


def _errors() -> list[Recording]:
    role, said = _event(_chunk({"role": "assistant"})), _event(_chunk({"content": "x"}))
    openai = {"error": {"message": "The server had an error", "type": "server_error", "param": None, "code": None}}
    vllm = {"object": "error", "message": "out of memory", "type": "BadRequestError", "param": None, "code": 400}
    return [
        _error("error in band", role + said, _event(openai), "The server had an error", events=3),
        _error("vllm's error in band", said, _event(vllm), "out of memory", events=2, end=DONE),
        _error("lm studio's error event", said, _event({"message": "model crashed"}, event="error"), "model crashed", events=2),
    ]  # fmt: skip


def _no_end() -> Recording:
    body = b"".join(_event(_chunk(delta)) for delta in ({"role": "assistant"}, {"content": "x"}, {"content": "y"}))
    return Recording("no end", body, counted=2, events=3, finished=False)


def _no_done() -> Recording:
    body = _event(_chunk({"content": "x"})) + _event(_chunk({}, "stop"))
    return Recording("a reason but no [DONE]", body, counted=1, events=2)


RECORDINGS = [
    _openai(), _openai_without_usage(), _tool_calls(), _refusal(), _vllm_reasoning(), _ollama(), _llamacpp(), _lmstudio(),
    _crlf(), _cr_and_no_end(), _several_data_lines(), _large(), _legacy(),
    _no_end(), _no_done(), *_errors(),
]  # fmt: skip
