"""What the demo backend says: OpenAI's and Ollama's forms, filled with text that can be read."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

_SUBJECTS = (
    "The gateway",
    "A careful operator",
    "Every request",
    "This backend",
    "The load balancer",
    "A quiet queue",
)
_VERBS = ("counts", "carries", "answers", "remembers", "routes", "measures", "forwards")
_OBJECTS = (
    "each token",
    "the next stream",
    "what was asked",
    "a steady rhythm",
    "the whole fleet",
    "every failure",
)
_ENDINGS = (
    "without haste",
    "before lunch",
    "over and over",
    "as promised",
    "on the first try",
    "in good order",
)
_DIMENSIONS = 32


def words(rng: random.Random, count: int) -> list[str]:
    """`count` words of made-up prose, each with the space or stop that goes before it."""
    said: list[str] = []
    while len(said) < count:
        parts = (
            rng.choice(_SUBJECTS),
            rng.choice(_VERBS),
            rng.choice(_OBJECTS),
            rng.choice(_ENDINGS),
        )
        said += (" ".join(parts) + ".").split(" ")
    return [word if n == 0 else f" {word}" for n, word in enumerate(said[:count])]


def tokens_of(prompt: Any) -> int:
    """A rough count, four characters a token, as long as it is the same every time."""
    return max(1, len(json.dumps(prompt, ensure_ascii=False)) // 4)


class Reply:
    """One answer to a chat or completion request, whole or as a stream's events."""

    END = b"data: [DONE]\n\n"

    def __init__(
        self, request: dict[str, Any], *, chat: bool, rng: random.Random, length: int
    ) -> None:
        self.chat = chat
        self.model = str(request.get("model"))
        limit = request.get("max_completion_tokens") or request.get("max_tokens")
        count = min(length, limit) if isinstance(limit, int) and limit > 0 else length
        self.words = words(rng, count)
        self.finish = "length" if count < length else "stop"
        prompt = request.get("messages") if chat else request.get("prompt")
        self.usage: dict[str, Any] = {
            "prompt_tokens": tokens_of(prompt),
            "completion_tokens": count,
        }
        self.usage["total_tokens"] = sum(self.usage.values())
        options = request.get("stream_options")
        self.usage_asked = isinstance(options, dict) and bool(options.get("include_usage"))
        self._id = f"{'chatcmpl' if chat else 'cmpl'}-demo{rng.randrange(16**12):012x}"
        self._created = int(time.time())

    def whole(self, *, usage: bool) -> dict[str, Any]:
        text = "".join(self.words)
        choice: dict[str, Any] = {"index": 0, "finish_reason": self.finish, "logprobs": None}
        choice |= (
            {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        )
        return self._frame(
            "chat.completion" if self.chat else "text_completion", [choice], usage=usage
        )

    def events(self, *, usage: bool) -> Iterator[dict[str, Any]]:
        """The role, each word, the finish, and the usage where it was asked for."""
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        if self.chat:
            yield self._frame(
                kind,
                [
                    {
                        "index": 0,
                        "delta": {"role": "assistant", "content": ""},
                        "finish_reason": None,
                    }
                ],
            )
        for word in self.words:
            said = {"delta": {"content": word}} if self.chat else {"text": word}
            yield self._frame(kind, [{"index": 0, **said, "finish_reason": None}])
        last: dict[str, Any] = {"delta": {}} if self.chat else {"text": ""}
        yield self._frame(kind, [{"index": 0, **last, "finish_reason": self.finish}])
        if usage and self.usage_asked:
            yield self._frame(kind, [], usage=True)

    @staticmethod
    def encode(event: dict[str, Any]) -> bytes:
        return b"data: " + json.dumps(event).encode() + b"\n\n"

    @staticmethod
    def is_end(event: dict[str, Any]) -> bool:
        """Whether the event comes after the last word."""
        return not (event["choices"] and event["choices"][0]["finish_reason"] is None)

    @classmethod
    def error(cls, message: str, code: int) -> bytes:
        return cls.encode(error(message, code=code or "demo_fault"))

    def _frame(
        self, kind: str, choices: list[dict[str, Any]], *, usage: bool = False
    ) -> dict[str, Any]:
        frame = {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self.model,
            "choices": choices,
        }
        return {**frame, "usage": self.usage} if usage else frame


def embeddings(request: dict[str, Any], *, usage: bool) -> dict[str, Any]:
    """A vector for each input, made from its hash, as floats or in base64 as OpenAI's client
    asks."""
    given = request.get("input")
    inputs = (
        given if isinstance(given, list) and given and isinstance(given[0], str | list) else [given]
    )
    data = []
    for index, item in enumerate(inputs):
        digest = hashlib.shake_128(json.dumps(item).encode()).digest(_DIMENSIONS)
        vector: Any = [round(byte / 127.5 - 1, 6) for byte in digest]
        if request.get("encoding_format") == "base64":
            vector = base64.b64encode(struct.pack(f"<{_DIMENSIONS}f", *vector)).decode()
        data.append({"object": "embedding", "index": index, "embedding": vector})
    answer: dict[str, Any] = {"object": "list", "data": data, "model": request.get("model")}
    if usage:
        count = tokens_of(given)
        answer["usage"] = {"prompt_tokens": count, "total_tokens": count}
    return answer


def rerank(request: dict[str, Any], *, usage: bool) -> dict[str, Any]:
    """The documents by the words that they share with the query, the best first."""
    query, documents = request.get("query"), request.get("documents") or []
    if not isinstance(documents, list):
        documents = [documents]
    results: list[dict[str, Any]] = [
        {"index": index, "document": {"text": text}, "relevance_score": _alike(query, text)}
        for index, text in enumerate(map(_text_of, documents))
    ]
    results.sort(key=lambda result: -result["relevance_score"])
    if request.get("return_documents") is False:
        for result in results:
            del result["document"]
    answer = {
        "id": "rerank-demo",
        "model": request.get("model"),
        "results": results[: request.get("top_n") or None],
    }
    return answer | _prompt_usage([query, documents], usage=usage)


def score(request: dict[str, Any], *, usage: bool) -> dict[str, Any]:
    """A score for each pair; a single text is paired with all of the other side."""
    pairs = (("text_1", "text_2"), ("data_1", "data_2"), ("queries", "documents"))
    left, right = next(names for names in pairs if request.get(names[1]) is not None)
    one, other = (_listed(request.get(name)) for name in (left, right))
    if len(one) == 1:
        one *= len(other)
    data = [
        {"index": index, "object": "score", "score": _alike(a, b)}
        for index, (a, b) in enumerate(zip(one, other, strict=False))
    ]
    answer = {"object": "list", "model": request.get("model"), "data": data}
    return answer | _prompt_usage([one, other], usage=usage)


def moderations(request: dict[str, Any], **_: bool) -> dict[str, Any]:
    """Each text is judged harmful if it has the word "harm". No usage is reported, as at OpenAI."""
    results = []
    for text in _listed(request.get("input")):
        harmful = "harm" in _text_of(text)
        results.append(
            {
                "flagged": harmful,
                "categories": {"violence": harmful},
                "category_scores": {"violence": float(harmful)},
            }
        )
    return {"id": "modr-demo", "model": request.get("model"), "results": results}


def images(request: dict[str, Any], *, usage: bool) -> dict[str, Any]:
    """As many images as are wanted, all the same: one dark pixel."""
    count = request.get("n") or 1
    answer: dict[str, Any] = {"created": 1700000000, "data": [{"b64_json": PIXEL}] * int(count)}
    return answer | (media_usage(request.get("prompt"), 10 * int(count)) if usage else {})


def media_usage(prompt: Any, output: int) -> dict[str, Any]:
    """Usage as OpenAI's endpoints for media report it."""
    tokens = tokens_of(prompt)
    counts = {"input_tokens": tokens, "output_tokens": output, "total_tokens": tokens + output}
    return {"usage": counts}


PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJg"
    "gg=="
)


def _listed(given: Any) -> list[Any]:
    return given if isinstance(given, list) else [given]


def _text_of(given: Any) -> str:
    return str(given.get("text")) if isinstance(given, dict) else str(given)


def _alike(one: Any, other: Any) -> float:
    """The share of the words of both texts that they have in common."""
    a, b = (set(_text_of(text).lower().split()) for text in (one, other))
    return round(len(a & b) / max(1, len(a | b)), 4)


def _prompt_usage(prompt: Any, *, usage: bool) -> dict[str, Any]:
    count = tokens_of(prompt)
    return {"usage": {"prompt_tokens": count, "total_tokens": count}} if usage else {}


GENERATED = {"/v1/chat/completions": True, "/v1/completions": False}
"""The endpoints that answer with a `Reply`, and whether that is a chat's."""
COMPUTED: dict[str, Callable[..., dict[str, Any]]] = {
    "/v1/embeddings": embeddings,
    "/v1/rerank": rerank,
    "/v1/score": score,
    "/v1/moderations": moderations,
    "/v1/images/generations": images,
}
"""The other endpoints, each with a function of the request's body and `usage`."""


def model_list(models: list[str], owner: str, *, context: bool = True) -> dict[str, Any]:
    """With `context`, each model has its context length as vLLM tells it."""
    more = {"max_model_len": 32768} if context else {}
    return {
        "object": "list",
        "data": [
            {"id": name, "object": "model", "created": 1700000000, "owned_by": owner, **more}
            for name in models
        ],
    }


def ollama_tags(models: list[str]) -> dict[str, Any]:
    return {
        "models": [
            {
                "name": name,
                "model": name,
                "size": 1,
                "digest": hashlib.sha256(name.encode()).hexdigest(),
            }
            for name in models
        ]
    }


def ollama_show(_name: str) -> dict[str, Any]:
    return {
        "capabilities": ["completion", "tools"],
        "model_info": {"general.architecture": "demo", "demo.context_length": 32768},
    }


def error(message: str, *, code: str | int, kind: str = "") -> dict[str, Any]:
    return {
        "error": {"message": message, "type": kind or "server_error", "param": None, "code": code}
    }
