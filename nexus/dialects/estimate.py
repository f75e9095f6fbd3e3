"""Estimates what a request takes before its usage is known, for limits on tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from nexus.dialects.base import RequestForm, TokenEstimate
from nexus.dialects.body_needs import CHARACTERS_PER_TOKEN, INLINE_DATA, characters_in

IMAGE_TOKENS = 1600
MESSAGE_TOKENS = 16
TOOLS_TOKENS = 512
_IMAGE = re.compile(rb'"type"\s*:\s*"(?:image_url|input_image|image|document)"')
_BASE64 = re.compile(rb'"data"\s*:\s*"[A-Za-z0-9+/=]*+"')
_BESIDE = frozenset(("system", "tools", "instructions"))
_MESSAGES = ("messages", "input")
_CHOICES = frozenset(("n", "best_of"))
_decode_number = msgspec.json.Decoder(int, strict=False).decode
"""Takes "5" and 5.0, too, as backends do."""
_decode_items = msgspec.json.Decoder(list[msgspec.Raw]).decode
_OUTPUT_LIMITS = frozenset(("max_completion_tokens", "max_tokens", "max_output_tokens"))
"""The largest counts: backends differ in which of them they know."""
_MOST = 10**9
"""What a larger number counts as, so that no sum overflows."""
STATED = _OUTPUT_LIMITS | _CHOICES
"""The fields that say how long a response can be."""


def estimate_tokens(
    fields: Mapping[str, bytes | msgspec.Raw], size: int, form: RequestForm
) -> TokenEstimate:
    """Estimate the tokens of a body of `size` bytes: a quarter of the prompt's characters."""
    characters = images = ids = inline = messages = 0
    for name, value in fields.items():
        if name not in form.fields and name not in _BESIDE:
            continue
        raw = bytes(value)
        if ord('"') not in raw:  # token ids
            ids += raw.count(b",") + 1 if raw[:1] == b"[" else 0
            continue
        if name in _MESSAGES:
            messages += raw.count(b'"role"')
        if _may_have_images(raw) and (pictures := len(_IMAGE.findall(raw))):
            images += pictures
            whole = len(raw)
            raw = _BASE64.sub(b"", INLINE_DATA.sub(b"", raw))
            inline += whole - len(raw)
        characters += characters_in(raw)
    prompt = max(1, characters // CHARACTERS_PER_TOKEN + ids + images * IMAGE_TOKENS)
    limit: int | None = 0
    choices = 1
    if form.task == "chat" and _OUTPUT_LIMITS.isdisjoint(fields):
        limit = None
    elif form.task == "chat":
        limits = (_number(fields, name) for name in _OUTPUT_LIMITS)
        limit = max((limit for limit in limits if limit is not None), default=None)
    if not _CHOICES.isdisjoint(fields) and form.task in ("chat", "images"):
        choices = choices_in(fields)
    if "prompt" in fields and form.task == "chat":
        choices *= _prompts_in(bytes(fields["prompt"]))
    beside = messages * MESSAGE_TOKENS + images * IMAGE_TOKENS
    if "tools" in fields:
        beside += TOOLS_TOKENS
    return TokenEstimate(prompt, limit, choices, size - inline, beside)


def _may_have_images(raw: bytes) -> bool:
    """Whether to look closer. `find` takes half as long as `in`, and most bodies have none."""
    return raw.find(b"image") >= 0 or raw.find(b"document") >= 0


def choices_in(fields: Mapping[str, bytes | msgspec.Raw]) -> int:
    """How many responses to one prompt these fields ask for."""
    return max(1, *[_number(fields, name) or 1 for name in _CHOICES])


def _prompts_in(raw: bytes) -> int:
    """How many prompts a field holds, each of which gets a response."""
    if raw[:1] != b"[" or (b'"' not in raw and b"[" not in raw[1:]):  # a text, or token ids
        return 1
    try:
        return max(1, len(_decode_items(raw)))
    except msgspec.DecodeError:  # not strict JSON: at most so many
        return raw.count(b",") + 1


def _number(fields: Mapping[str, bytes | msgspec.Raw], name: str) -> int | None:
    if (raw := fields.get(name)) is None:
        return None
    try:
        value = _decode_number(raw)
    except msgspec.DecodeError:
        return None
    return min(value, _MOST) if value >= 0 else None
