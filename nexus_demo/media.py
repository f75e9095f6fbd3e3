"""What the demo backend says in streams of images and speech, and what its audio is."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from typing import Any

from nexus_demo.responses import PIXEL, media_usage

SPEECH, IMAGES = "/v1/audio/speech", "/v1/images/generations"
_PIECE_BYTES = 400


def speech(request: dict[str, Any]) -> Iterator[bytes]:
    """Bytes that no player plays, one piece for each word of the text; the same each time."""
    for word in str(request.get("input")).split():
        yield hashlib.shake_128(word.encode()).digest(_PIECE_BYTES)


class MediaReply:
    """The events of a stream of an image or of speech."""

    END = b""

    def __init__(self, request: dict[str, Any], path: str) -> None:
        self._request, self._path = request, path

    def events(self, *, usage: bool) -> Iterator[dict[str, Any]]:
        if self._path == SPEECH:
            for piece in speech(self._request):
                audio = base64.b64encode(piece).decode()
                yield {"type": "speech.audio.delta", "audio": audio}
            counts = media_usage(self._request.get("input"), 20) if usage else {}
            yield {"type": "speech.audio.done", **counts}
            return
        for index in range(int(self._request.get("partial_images") or 1)):
            partial = {"b64_json": PIXEL, "partial_image_index": index}
            yield {"type": "image_generation.partial_image", **partial}
        counts = media_usage(self._request.get("prompt"), 10) if usage else {}
        yield {"type": "image_generation.completed", "b64_json": PIXEL, **counts}

    @staticmethod
    def encode(event: dict[str, Any]) -> bytes:
        return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()

    @staticmethod
    def is_end(event: dict[str, Any]) -> bool:
        kind: str = event["type"]
        return kind.endswith((".done", ".completed"))

    @classmethod
    def error(cls, message: str, code: int) -> bytes:
        error = {"message": message, "type": "server_error", "code": code or "server_error"}
        return cls.encode({"type": "error", "error": error})
