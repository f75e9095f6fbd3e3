"""Capabilities guessed from a model's name, for backends that tell none."""

from __future__ import annotations

import re
from typing import Any

from nexus.fleet.records import Model

_VISION = re.compile(
    r"llava|vision|pixtral|moondream|minicpm-v|bakllava|internvl|[-_.\d]vl\b|gpt-4o|gpt-4\.1|gpt-5|gemma-?3|llama-?4|-vl-",
    re.IGNORECASE,
)
_TOOLS = re.compile(
    r"llama-?3\.[1-9]|llama-?4|mistral|mixtral|qwen-?(?:2\.5|[3-9])|gpt-[345]|command-r|hermes|firefunction|\bo[134]\b",
    re.IGNORECASE,
)


def guess(name: str, **known: Any) -> Model:
    """A model of this name; what `known` says wins over the guess."""
    guessed = {"vision": bool(_VISION.search(name)), "tools": bool(_TOOLS.search(name))}
    return Model(name=name, **{**guessed, **known})
