"""A simulated prefix cache: which start of a prompt a model server would not compute again."""

from __future__ import annotations

import json
from collections import OrderedDict
from typing import Any

from gevent.lock import BoundedSemaphore

BLOCK_CHARACTERS = 256
BLOCK_TOKENS = BLOCK_CHARACTERS // 4


class PrefixCache:
    """The blocks of the last prompts, least recently used ones forgotten first.

    Attributes:
        prefill_s: How long a block takes that is not cached.
        slots: Held by each request that is worked on.
        found: How many of all blocks so far were cached.
        seen: How many blocks there were.
    """

    def __init__(self, blocks: int, *, prefill_s: float, slots: int) -> None:
        self._most = blocks
        self._blocks: OrderedDict[int, None] = OrderedDict()
        self.prefill_s = prefill_s
        self.slots = BoundedSemaphore(slots)
        self.found = self.seen = 0

    def clear(self) -> None:
        """Forget all blocks, and what was counted."""
        self._blocks.clear()
        self.found = self.seen = 0

    def read(self, request: dict[str, Any]) -> tuple[int, float]:
        """Take a prompt up; gives how many of its tokens were cached, and how long the others
        take."""
        prompt = request.get("messages") or request.get("prompt")
        text = json.dumps([request.get("tools"), prompt])
        chain, cached, missed = 0, 0, False
        blocks = len(text) // BLOCK_CHARACTERS
        for n in range(blocks):
            chain = hash((chain, text[n * BLOCK_CHARACTERS : (n + 1) * BLOCK_CHARACTERS]))
            missed = missed or chain not in self._blocks
            cached += not missed
            self._blocks[chain] = None
            self._blocks.move_to_end(chain)
        while len(self._blocks) > self._most:
            self._blocks.popitem(last=False)
        self.found += cached
        self.seen += blocks
        return cached * BLOCK_TOKENS, (blocks - cached) * self.prefill_s
