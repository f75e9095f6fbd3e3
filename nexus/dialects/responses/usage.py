"""What a whole response reports: its tokens, and the ids under which the backend stores it.

Every response and every stream reports its usage unasked.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from typing import Any

import msgspec

from nexus.dialects.base import BackgroundState, Usage
from nexus.dialects.counts import count, detail
from nexus.dialects.lenient_json import UNREADABLE, lenient

SEALED = "sealed "
"""Begins the names of what is encrypted; no id has a space."""
# A quote within a JSON string is escaped, so this matches a name and its value only.
_SEALED = re.compile(rb'"encrypted_content"\s*:\s*"((?:[^"\\]++|\\.)++)"', re.DOTALL)
_LONGEST_ID = 256


class UsageFields(msgspec.Struct):
    """The counts of a `usage` object."""

    input_tokens: Any = None
    output_tokens: Any = None
    input_tokens_details: Any = None
    output_tokens_details: Any = None


class _Conversation(msgspec.Struct):
    id: Any = None


class StoredFields(msgspec.Struct):
    """The fields of a response that name it and its conversation."""

    id: Any = None
    conversation: _Conversation | None = None

    def ids(self) -> tuple[str, ...]:
        given = (self.id, self.conversation and self.conversation.id)
        return tuple(one for one in given if isinstance(one, str) and 0 < len(one) <= _LONGEST_ID)


class _Response(msgspec.Struct):
    usage: UsageFields | None = None


class _State(StoredFields):
    object: Any = None
    background: Any = None
    status: Any = None
    usage: UsageFields | None = None


_decode_state = lenient(msgspec.json.Decoder(_State).decode)
_decode = msgspec.json.Decoder(_Response).decode
_decode_leniently = lenient(_decode)
_decode_stored = lenient(msgspec.json.Decoder(StoredFields).decode)


def usage_in_response(response: bytes, *, lenient: bool = False) -> Usage | None:
    """The usage that a whole response reports; None if it reports none in this form."""
    if b'"usage"' not in response:
        return None
    try:
        fields = (_decode_leniently if lenient else _decode)(response).usage
    except UNREADABLE:
        return None
    return usage_of(fields)


def usage_of(fields: UsageFields | None) -> Usage | None:
    """The usage that these fields report; None if it is neither input nor output."""
    if fields is None:
        return None
    prompt, completion = count(fields.input_tokens), count(fields.output_tokens)
    if prompt is None and completion is None:
        return None
    read, written = fields.input_tokens_details, fields.output_tokens_details
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        cached_tokens=detail(read, "cached_tokens"),
        reasoning_tokens=detail(written, "reasoning_tokens"),
        cache_write_tokens=detail(read, "cache_write_tokens"),
    )


def stored_ids(response: bytes) -> tuple[str, ...]:
    """The ids under which a whole response and its conversation can be named later, and the name
    of what is encrypted in it."""
    try:
        ids = _decode_stored(response).ids()
    except UNREADABLE:
        return ()
    return ids if (name := sealed_in(response)) is None else (*ids, name)


def background_state(response: bytes) -> BackgroundState | None:
    """The state of a response that is made in the background; None of another one."""
    try:
        state = _decode_state(response)
    except UNREADABLE:
        return None
    ids = state.ids()
    if state.background is not True or state.object != "response" or not ids:
        return None
    usage = usage_of(state.usage)
    if usage is None and state.status in ("failed", "cancelled"):
        usage = Usage(0, 0)
    return BackgroundState(ids[0], state.status not in ("queued", "in_progress"), usage)


def sealed_in(items: bytes) -> str | None:
    """The name of the first encrypted content in a piece of JSON; None if there is none."""
    if b'"encrypted_content"' not in items or (found := _SEALED.search(items)) is None:
        return None
    return SEALED + blake2b(found[1], digest_size=16).hexdigest()


def asks_for_usage(_body: bytes) -> bool:
    """Every stream reports its usage."""
    return True


def ask_for_usage(body: bytes) -> bytes:
    return body
