"""What the demo backend says in the form of OpenAI's Responses API, and which of it it stores."""

from __future__ import annotations

import json
import random
import time
import uuid
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from nexus_demo.responses import error, tokens_of, words

PATH = "/v1/responses"
PATHS = (PATH, f"{PATH}/{{id}}", f"{PATH}/{{id}}/cancel", f"{PATH}/{{id}}/input_items")
_MOST_STORED = 1000


class ResponseReply:
    """One response, whole or as a stream's events.

    Attributes:
        usage: The counts by name.
    """

    END = b""

    def __init__(self, request: dict[str, Any], *, rng: random.Random, length: int) -> None:
        limit = request.get("max_output_tokens")
        count = min(length, limit) if isinstance(limit, int) and limit > 0 else length
        self.words = words(rng, count)
        prompt = tokens_of([request.get(name) for name in ("tools", "instructions", "input")])
        self.usage: dict[str, Any] = {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": count,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt + count,
        }
        self._cut = count < length
        include = request.get("include")
        self._seals = isinstance(include, list) and "reasoning.encrypted_content" in include
        self._request = request
        self._item = f"msg_demo{rng.randrange(16**12):012x}"
        self.id = f"resp_demo{uuid.uuid4().hex}"  # no other backend gives it

    def whole(self, *, usage: bool) -> dict[str, Any]:
        status = "incomplete" if self._cut else "completed"
        text = "".join(self.words)
        details = {"reason": "max_output_tokens"} if self._cut else None
        output = [self._message(status, text)]
        if self._seals:
            sealed = {"type": "reasoning", "id": f"rs_{self.id}", "summary": []}
            output.insert(0, sealed | {"encrypted_content": f"of {self.id}"})
        return self._response(status, output) | {
            "incomplete_details": details,
            "usage": self.usage if usage else None,
        }

    def queued(self) -> dict[str, Any]:
        """What the client gets at once of a response in the background."""
        return self._response("queued", [])

    def events(self, *, usage: bool) -> Iterator[dict[str, Any]]:
        """The start, each word, and the end with the usage, numbered."""
        for number, event in enumerate(self._events(usage=usage)):
            yield {**event, "sequence_number": number}

    def _events(self, *, usage: bool) -> Iterator[dict[str, Any]]:
        started = self._response("in_progress", [])
        yield {"type": "response.created", "response": started}
        yield {"type": "response.in_progress", "response": started}
        place = {"item_id": self._item, "output_index": 0, "content_index": 0}
        item = {"output_index": 0, "item": self._message("in_progress", None)}
        yield {"type": "response.output_item.added", **item}
        yield {"type": "response.content_part.added", **place, "part": _text("")}
        for word in self.words:
            yield {"type": "response.output_text.delta", **place, "delta": word, "logprobs": []}
        text = "".join(self.words)
        yield {"type": "response.output_text.done", **place, "text": text, "logprobs": []}
        yield {"type": "response.content_part.done", **place, "part": _text(text)}
        whole = self.whole(usage=usage)
        item = {"output_index": 0, "item": whole["output"][-1]}
        yield {"type": "response.output_item.done", **item}
        yield {"type": f"response.{whole['status']}", "response": whole}

    def _response(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        asked = self._request
        return {
            "id": self.id,
            "object": "response",
            "created_at": int(time.time()),
            "status": status,
            "background": asked.get("background") is True,
            "error": None,
            "incomplete_details": None,
            "instructions": asked.get("instructions"),
            "model": str(asked.get("model")),
            "output": output,
            "parallel_tool_calls": True,
            "previous_response_id": asked.get("previous_response_id"),
            "store": asked.get("store") is not False,
            "tool_choice": "auto",
            "tools": asked.get("tools") or [],
            "metadata": {},
            "usage": None,
        }

    def _message(self, status: str, text: str | None) -> dict[str, Any]:
        content = [] if text is None else [_text(text)]
        return {
            "type": "message",
            "id": self._item,
            "status": status,
            "role": "assistant",
            "content": content,
        }

    @staticmethod
    def encode(event: dict[str, Any]) -> bytes:
        return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()

    @staticmethod
    def is_end(event: dict[str, Any]) -> bool:
        """Whether the event comes after the last word."""
        kind: str = event["type"]
        return kind.endswith((".done", ".completed", ".incomplete"))

    @classmethod
    def error(cls, message: str, code: int) -> bytes:
        known = {429: "rate_limit_exceeded", 503: "server_is_overloaded"}
        fields = {"code": known.get(code, "server_error"), "message": message, "param": None}
        return cls.encode({"type": "error", **fields, "sequence_number": 0})


class StoredResponses:
    """The responses that can be named later, the latest of them."""

    def __init__(self) -> None:
        self._stored: OrderedDict[str, tuple[dict[str, Any], dict[str, Any]]] = OrderedDict()

    def add(self, reply: ResponseReply, request: dict[str, Any]) -> None:
        """Store a response unless its client does not want that."""
        if request.get("store") is not False:
            self._stored[reply.id] = request, reply.whole(usage=True)
            if len(self._stored) > _MOST_STORED:
                self._stored.popitem(last=False)

    def __contains__(self, stored_id: object) -> bool:
        return isinstance(stored_id, str) and stored_id in self._stored

    def answer(self, method: str, path: str) -> tuple[int, dict[str, Any]]:
        """The status and body for a request below `PATH`."""
        stored_id, _, part = path.removeprefix(f"{PATH}/").partition("/")
        if (known := self._stored.get(stored_id)) is None:
            return 404, missing(stored_id)
        request, response = known
        if (method, part) == ("DELETE", ""):
            del self._stored[stored_id]
            return 200, {"id": stored_id, "object": "response.deleted", "deleted": True}
        if (method, part) == ("GET", "input_items"):
            return 200, {"object": "list", "data": _items(request), "has_more": False}
        if (method, part) in (("GET", ""), ("POST", "cancel")):
            return 200, response
        return 405, error(f"nothing at {method} {path}", code="not_found")


def missing(stored_id: object) -> dict[str, Any]:
    message = f"Response with id '{stored_id}' not found."
    return error(message, code="not_found", kind="invalid_request_error")


def _items(request: dict[str, Any]) -> list[dict[str, Any]]:
    given = request.get("input")
    messages = given if isinstance(given, list) else [{"role": "user", "content": given}]
    return [
        {"id": f"item_{n}", "type": "message", "status": "completed"}
        | message
        | {"content": [{"type": "input_text", "text": str(message.get("content"))}]}
        for n, message in enumerate(messages)
        if isinstance(message, dict)
    ]


def _text(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
