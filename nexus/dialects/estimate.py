"""Estimates what a request takes before its usage is known, for limits on tokens."""

from __future__ import annotations

import re

import msgspec

from nexus.dialects.base import RequestForm, TokenEstimate
from nexus.dialects.body_needs import CHARACTERS_PER_TOKEN, INLINE_DATA, characters_in
from nexus.dialects.json_body import read_fields

IMAGE_TOKENS = 1600
MESSAGE_TOKENS = 16
TOOLS_TOKENS = 512
_IMAGE = re.compile(rb'"type"\s*:\s*"(?:image_url|input_image|image|document)"')
_BASE64 = re.compile(rb'"data"\s*:\s*"[A-Za-z0-9+/=]*+"')
_BESIDE = frozenset(("system", "tools", "instructions"))
_CHOICES = ("n", "best_of")
_OUTPUT_LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")


def estimate_tokens(body: bytes, form: RequestForm) -> TokenEstimate:
    """Estimate the tokens of a body that was parsed: a quarter of the prompt's characters."""
    fields = read_fields(body)
    characters = images = ids = inline = 0
    for name in form.fields | _BESIDE:
        raw = bytes(fields.get(name, b""))
        if b'"' not in raw:  # token ids
            ids += raw.count(b",") + 1 if raw[:1] == b"[" else 0
            continue
        pictures = sum(1 for _ in _IMAGE.finditer(raw))
        if pictures:
            whole = len(raw)
            raw = _BASE64.sub(b"", INLINE_DATA.sub(b"", raw))
            inline += whole - len(raw)
        characters += characters_in(raw)
        images += pictures
    prompt = max(1, characters // CHARACTERS_PER_TOKEN + ids + images * IMAGE_TOKENS)
    limit: int | None = 0
    choices = 1
    if form.task == "chat":
        limits = (_number(bytes(fields.get(name, b""))) for name in _OUTPUT_LIMITS)
        limit = next((limit for limit in limits if limit is not None), None)
    if form.task in ("chat", "images"):
        choices = max(1, *(_number(bytes(fields.get(name, b""))) or 1 for name in _CHOICES))
    messages = sum(bytes(fields.get(name, b"")).count(b'"role"') for name in ("messages", "input"))
    beside = messages * MESSAGE_TOKENS + images * IMAGE_TOKENS
    if "tools" in fields:
        beside += TOOLS_TOKENS
    return TokenEstimate(prompt, limit, choices, len(body) - inline, beside)


def _number(raw: bytes) -> int | None:
    try:
        value = msgspec.json.decode(raw, type=int)
    except msgspec.DecodeError:
        return None
    return value if value >= 0 else None
