"""What the demo backend says in streams of images and speech, and what its audio is."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from typing import Any

from nexus_demo.responses import PIXEL, media_usage

TRANSCRIPTIONS = ("/v1/audio/transcriptions", "/v1/audio/translations")
FORMS = (*TRANSCRIPTIONS, "/v1/images/edits", "/v1/images/variations")
SPEECH, IMAGES = "/v1/audio/speech", "/v1/images/generations"
_PIECE_BYTES = 400


def speech(request: dict[str, Any]) -> Iterator[bytes]:
    """Bytes that no player plays, one piece for each word of the text; the same each time."""
    for word in str(request.get("input")).split():
        yield hashlib.shake_128(word.encode()).digest(_PIECE_BYTES)


def form(content_type: str, body: bytes) -> dict[str, Any]:
    """The fields of a form; of a file its bytes. Raises ValueError."""
    boundary = content_type.partition("boundary=")[2].strip('"').encode()
    *parts, last = (b"\r\n" + body).split(b"\r\n--" + boundary)
    if not boundary or not last.startswith(b"--"):
        raise ValueError("the form is not whole")
    fields: dict[str, Any] = {}
    for part in parts[1:]:
        head, _, value = part.partition(b"\r\n\r\n")
        name = head.partition(b'name="')[2].partition(b'"')[0].decode()
        fields[name] = value if b"filename=" in head else value.decode()
    return fields


def transcript(fields: dict[str, Any]) -> dict[str, Any]:
    """How long the audio is, in words. A second has 16,000 bytes."""
    size = len(fields.get("file") or b"")
    usage = {"type": "duration", "seconds": size // 16_000}
    return {"text": f"This audio has {size} bytes.", "usage": usage}


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
        if self._path in TRANSCRIPTIONS:
            said = transcript(self._request)
            for word in said["text"].split():
                yield {"type": "transcript.text.delta", "delta": f"{word} "}
            counts = {"usage": said["usage"]} if usage else {}
            yield {"type": "transcript.text.done", "text": said["text"], **counts}
            return
        kind = "image_edit" if self._path in FORMS else "image_generation"
        for index in range(int(self._request.get("partial_images") or 1)):
            partial = {"b64_json": PIXEL, "partial_image_index": index}
            yield {"type": f"{kind}.partial_image", **partial}
        counts = media_usage(self._request.get("prompt"), 10) if usage else {}
        yield {"type": f"{kind}.completed", "b64_json": PIXEL, **counts}

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
