"""OpenAI's token usage: read from answers, and asked for where a client did not."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from nexus.dialects.json_body import InvalidBody, read_fields, with_field


class Usage(msgspec.Struct):
    """How many tokens an answer took, as far as it is told; cached ones of the prompt, reasoning
    ones of the rest."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class _Reported(msgspec.Struct):
    prompt_tokens: Any = None
    completion_tokens: Any = None
    prompt_tokens_details: Any = None
    completion_tokens_details: Any = None


class _Answer(msgspec.Struct):
    usage: _Reported | None = None


class _Timings(msgspec.Struct):
    cache_n: Any = None
    prompt_n: Any = None
    predicted_n: Any = None


_MOST = 10**8
"""A larger number of tokens is not believed: one such answer would spoil a sum for as long as
the gateway runs."""
_LONGEST_USAGE = 4 * 1024
"""Bytes of an answer after the key `usage` that are looked at where the answer is not strict
JSON."""

_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_timings = msgspec.json.Decoder(_Timings).decode
_decode_reported = msgspec.json.Decoder(_Reported).decode


def _usage(reported: _Reported) -> Usage | None:
    """What is told in OpenAI's form, each figure by itself; None where neither count is."""
    prompt, completion = _count(reported.prompt_tokens), _count(reported.completion_tokens)
    if prompt is None and completion is None:
        return None
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        cached_tokens=_detail(reported.prompt_tokens_details, "cached_tokens")
        if reported.prompt_tokens_details
        else None,
        reasoning_tokens=_detail(reported.completion_tokens_details, "reasoning_tokens")
        if reported.completion_tokens_details
        else None,
    )


def _detail(details: Any, name: str) -> int | None:
    return _count(details.get(name)) if isinstance(details, dict) else None


def _count(value: Any) -> int | None:
    """A number of tokens; None for what is none: below nothing, no whole number, or too large to
    be believed."""
    if value is None or (type(value) is int and 0 <= value <= _MOST):
        return value
    if type(value) not in (int, float) or not 0 <= value <= _MOST or value != int(value):
        return None
    return int(value)


def usage_of(answer: bytes, *, lenient: bool = False) -> Usage | None:
    """The usage that a whole answer reports; None where it reports none, or not in OpenAI's form.

    `lenient`: the answer is JSON, but may hold what strict JSON cannot, such as NaN.
    """
    if b'"usage"' not in answer:
        return None
    try:
        reported = _decode_answer(answer).usage
    except (msgspec.ValidationError, RecursionError):
        return None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _usage_beside_what_is_not_strict(answer) if lenient else None
    return _usage(reported) if reported is not None else None


def _usage_beside_what_is_not_strict(answer: bytes) -> Usage | None:
    """The usage of an answer that has a NaN or a lone surrogate somewhere: only the object
    itself is read."""
    at = answer.rfind(b'"usage"') + len(b'"usage"')
    text = answer[at : at + _LONGEST_USAGE].decode("utf-8", "replace").lstrip(" \t\r\n:")
    try:
        reported, _ = json.JSONDecoder().raw_decode(text)
        return _usage(msgspec.convert(reported, _Reported))
    except (ValueError, RecursionError, msgspec.ValidationError):
        return None


def usage_in(raw: bytes) -> Usage | None:
    """The usage in a `usage` object; None where it is not in OpenAI's form."""
    try:
        return _usage(_decode_reported(raw))
    except (msgspec.DecodeError, RecursionError):
        return None


def timings_usage(raw: bytes) -> Usage | None:
    """The usage in llama.cpp's `timings`, where the prompt's cached tokens are apart; None where
    it is not there."""
    try:
        reported = _decode_timings(raw)
    except (msgspec.DecodeError, RecursionError):
        return None
    cached, read, completion = map(
        _count, (reported.cache_n, reported.prompt_n, reported.predicted_n)
    )
    if completion is None:
        return None
    prompt = cached + read if cached is not None and read is not None else None
    return Usage(prompt_tokens=prompt, completion_tokens=completion, cached_tokens=cached)


def asks_for_usage(body: bytes) -> bool:
    """Whether a request for a stream asks for its usage by itself."""
    if b'"include_usage"' not in body:
        return False
    try:
        return bytes(read_fields(_options(body)).get("include_usage", b"")) == b"true"
    except InvalidBody:
        return False


def with_usage_asked(body: bytes) -> bytes:
    """The body, a JSON object that is not empty, with `stream_options.include_usage` set; all else
    keeps its bytes.

    Gives the body as it is where `stream_options` is not an object: the backend is to say so, as it
    was asked.
    """
    if b'"stream_options"' not in body:
        return body.rstrip()[:-1] + b',"stream_options":{"include_usage":true}}'
    try:
        options = with_field(_options(body), "include_usage", b"true")
        return with_field(body, "stream_options", options)
    except (msgspec.DecodeError, InvalidBody, RecursionError):
        return body


def _options(body: bytes) -> bytes:
    """The field's bytes; those of an empty object if there is none."""
    given = bytes(read_fields(body).get("stream_options", b"null"))
    return b"{}" if given == b"null" else given
