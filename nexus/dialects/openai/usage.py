"""OpenAI's token usage: read from responses, and asked for in streams if the client did not."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from nexus.dialects.base import InvalidBody, Usage
from nexus.dialects.counts import count, detail
from nexus.dialects.json_body import read_fields, with_field


class _Fields(msgspec.Struct):
    prompt_tokens: Any = None
    completion_tokens: Any = None
    total_tokens: Any = None
    prompt_tokens_details: Any = None
    completion_tokens_details: Any = None
    cached_tokens: Any = None
    prompt_cache_hit_tokens: Any = None


class _Response(msgspec.Struct):
    usage: _Fields | None = None


class _Timings(msgspec.Struct):
    cache_n: Any = None
    prompt_n: Any = None
    predicted_n: Any = None


_LONGEST_USAGE = 4 * 1024
"""Bytes after the key `usage` that are searched if a response is not strict JSON."""

_decode_response = msgspec.json.Decoder(_Response).decode
_decode_timings = msgspec.json.Decoder(_Timings).decode
_decode_fields = msgspec.json.Decoder(_Fields).decode


def usage_in_response(response: bytes, *, lenient: bool = False) -> Usage | None:
    """The usage that a whole response reports; None if it reports none in OpenAI's form.

    `lenient`: the response is JSON, but may hold what strict JSON cannot, such as NaN.
    """
    if b'"usage"' not in response:
        return None
    try:
        fields = _decode_response(response).usage
    except (msgspec.ValidationError, RecursionError):
        return None
    except (msgspec.DecodeError, UnicodeDecodeError):
        fields = _fields_in_lenient_json(response) if lenient else None
    if fields is None:
        return None
    usage = _usage(fields)
    if usage is None and (total := count(fields.total_tokens)) is not None:
        # Servers for embeddings and reranking report a total alone. Without `choices` nothing was
        # generated, so that all tokens are the prompt's.
        return Usage(prompt_tokens=total) if b'"choices"' not in response else None
    return usage


def _fields_in_lenient_json(response: bytes) -> _Fields | None:
    """The usage of a response that has a NaN or a lone surrogate somewhere: only the object
    itself is read."""
    at = response.rfind(b'"usage"') + len(b'"usage"')
    text = response[at : at + _LONGEST_USAGE].decode("utf-8", "replace").lstrip(" \t\r\n:")
    try:
        value, _ = json.JSONDecoder().raw_decode(text)
        return msgspec.convert(value, _Fields)
    except (ValueError, RecursionError, msgspec.ValidationError):
        return None


def parse_usage(raw: bytes) -> Usage | None:
    """The usage in a `usage` object of a stream; None if it is not in OpenAI's form."""
    try:
        return _usage(_decode_fields(raw))
    except (msgspec.DecodeError, RecursionError):
        return None


def usage_of(value: Any) -> Usage | None:
    """The usage in a `usage` object that is decoded; None if it is not in OpenAI's form."""
    return _usage(msgspec.convert(value, _Fields)) if isinstance(value, dict) else None


def parse_timings(raw: bytes) -> Usage | None:
    """The usage in llama.cpp's `timings`, which count the prompt's cached tokens apart."""
    try:
        fields = _decode_timings(raw)
    except (msgspec.DecodeError, RecursionError):
        return None
    cached, read, completion = map(count, (fields.cache_n, fields.prompt_n, fields.predicted_n))
    if completion is None:
        return None
    prompt = cached + read if cached is not None and read is not None else None
    return Usage(prompt_tokens=prompt, completion_tokens=completion, cached_tokens=cached)


def _usage(fields: _Fields) -> Usage | None:
    """Each count by itself; None if both the prompt's and the completion's are missing."""
    prompt, completion = count(fields.prompt_tokens), count(fields.completion_tokens)
    if prompt is None and completion is None:
        return None
    cached = written = reasoning = None
    if of_prompt := fields.prompt_tokens_details:  # most responses have no details
        cached, written = (
            detail(of_prompt, "cached_tokens"),
            detail(of_prompt, "cache_write_tokens"),
        )
        if written is None:
            written = detail(of_prompt, "cache_creation_tokens")  # LiteLLM
    if cached is None:  # Moonshot's field, and DeepSeek's
        moonshot = fields.cached_tokens
        cached = count(fields.prompt_cache_hit_tokens if moonshot is None else moonshot)
    if of_completion := fields.completion_tokens_details:
        reasoning = detail(of_completion, "reasoning_tokens")
    if prompt is not None and completion is not None and fields.total_tokens != prompt + completion:
        # Reasoning that is only in the total: xAI reports how much, Google does not. Servers before
        # Anthropic's models may have the cache's tokens there, beside the prompt's.
        apart = (count(fields.total_tokens) or 0) - prompt - completion
        cache = (cached, written, (cached or 0) + (written or 0))
        if apart > 0 and (apart == reasoning or (reasoning is None and apart not in cache)):
            completion += apart
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        cached_tokens=cached,
        reasoning_tokens=reasoning,
        cache_write_tokens=written,
    )


def asks_for_usage(body: bytes) -> bool:
    """Whether a request for a stream asks for its usage itself."""
    if b'"include_usage"' not in body:
        return False
    try:
        return bytes(read_fields(_options(body)).get("include_usage", b"")) == b"true"
    except InvalidBody:
        return False


def ask_for_usage(body: bytes) -> bytes:
    """The body with `stream_options.include_usage` set; all other bytes stay.

    The body must be a JSON object that is not empty. It is returned as it is if `stream_options` is
    not an object: then the backend refuses what the client sent.
    """
    if b'"stream_options"' not in body:
        return body.rstrip()[:-1] + b',"stream_options":{"include_usage":true}}'
    try:
        options = with_field(_options(body), "include_usage", b"true")
        return with_field(body, "stream_options", options)
    except (msgspec.DecodeError, InvalidBody, RecursionError):
        return body


def _options(body: bytes) -> bytes:
    """The bytes of `stream_options`; those of an empty object if there is none."""
    options = bytes(read_fields(body).get("stream_options", b"null"))
    return b"{}" if options == b"null" else options
