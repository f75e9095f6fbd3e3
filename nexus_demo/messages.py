"""What the demo backend says in Anthropic's form: messages, their streams, counts of tokens."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

from nexus_demo.responses import tokens_of, words

PATH = "/v1/messages"
_ERRORS = {400: "invalid_request_error", 429: "rate_limit_error", 529: "overloaded_error"}


class MessageReply:
    """One answer to a request for a message, whole or as a stream's events.

    Attributes:
        usage: The counts by name.
    """

    END = b""

    def __init__(self, request: dict[str, Any], *, rng: random.Random, length: int) -> None:
        limit = request.get("max_tokens")
        count = min(length, limit) if isinstance(limit, int) and limit > 0 else length
        self.words = words(rng, count)
        self.usage = {"input_tokens": _prompt_tokens(request), "output_tokens": count}
        self._stop = "max_tokens" if count < length else "end_turn"
        self._model = str(request.get("model"))
        self._id = f"msg_demo{rng.randrange(16**12):012x}"

    def whole(self, *, usage: bool) -> dict[str, Any]:
        content = [{"type": "text", "text": "".join(self.words)}]
        return self._message(content, self._stop, self.usage if usage else {})

    def events(self, *, usage: bool) -> Iterator[dict[str, Any]]:
        """The start, a ping, each word, and the end with the usage."""
        start = {"input_tokens": self.usage["input_tokens"], "output_tokens": 1} if usage else {}
        yield {"type": "message_start", "message": self._message([], None, start)}
        block = {"type": "text", "text": ""}
        yield {"type": "content_block_start", "index": 0, "content_block": block}
        yield {"type": "ping"}
        for word in self.words:
            delta = {"type": "text_delta", "text": word}
            yield {"type": "content_block_delta", "index": 0, "delta": delta}
        yield {"type": "content_block_stop", "index": 0}
        end = {"stop_reason": self._stop, "stop_sequence": None}
        usage_now = {"output_tokens": self.usage["output_tokens"]} if usage else {}
        yield {"type": "message_delta", "delta": end, "usage": usage_now}
        yield {"type": "message_stop"}

    def _message(
        self, content: list[dict[str, Any]], stop: str | None, usage: dict[str, Any]
    ) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
            "stop_reason": stop,
            "stop_sequence": None,
            "usage": usage,
        }

    @staticmethod
    def encode(event: dict[str, Any]) -> bytes:
        return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()

    @staticmethod
    def is_end(event: dict[str, Any]) -> bool:
        """Whether the event comes after the last word."""
        return event["type"] in ("content_block_stop", "message_delta", "message_stop")

    @classmethod
    def error(cls, message: str, code: int) -> bytes:
        error = {"type": _ERRORS.get(code, "api_error"), "message": message}
        return cls.encode({"type": "error", "error": error})


def count_tokens(request: dict[str, Any], **_: bool) -> dict[str, Any]:
    return {"input_tokens": _prompt_tokens(request)}


COMPUTED: dict[str, Callable[..., dict[str, Any]]] = {f"{PATH}/count_tokens": count_tokens}


def _prompt_tokens(request: dict[str, Any]) -> int:
    return tokens_of([request.get(name) for name in ("tools", "system", "messages")])
