"""The files and batches that the demo backend stores."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from typing import Any

from nexus_demo.media import form
from nexus_demo.responses import error

PATHS = (
    "/v1/files", "/v1/files/{id}", "/v1/files/{id}/content", "/v1/batches", "/v1/batches/{id}",
    "/v1/batches/{id}/cancel",
)  # fmt: skip
_MOST_BYTES = 64 * 1024 * 1024
Answer = tuple[int, dict[str, Any] | bytes]


class FileStore:
    """Files and batches. Of the files, the latest with up to 64 MiB are kept."""

    def __init__(self) -> None:
        self._files: dict[str, tuple[dict[str, Any], bytes]] = {}
        self._batches: dict[str, dict[str, Any]] = {}
        self._ids = itertools.count(1)

    def answer(self, method: str, path: str, content_type: str, body: bytes) -> Answer:
        """The status and body for a request to one of `PATHS`. Raises ValueError."""
        kind, *rest = path.removeprefix("/v1/").split("/")
        of: Callable[..., Answer] = self._of_file if kind == "files" else self._of_batch
        if rest:
            return of(method, *rest)
        if method == "GET":
            known = [one for one, _ in self._files.values()]
            data = known if kind == "files" else list(self._batches.values())
            return 200, {"object": "list", "data": data[::-1], "has_more": False}
        if kind == "files":
            return self._store(form(content_type, body))
        asked = json.loads(body)
        if not isinstance(asked, dict):
            raise ValueError("the body must be an object")
        return self._start(asked)

    def _new(self, kind: str, **fields: Any) -> dict[str, Any]:
        return {"id": f"{kind}-{next(self._ids)}", "created_at": int(time.time()), **fields}

    def _store(self, fields: dict[str, Any]) -> Answer:
        content = fields.get("file")
        if not isinstance(content, bytes):
            raise ValueError("the form has no file")
        file = self._new(
            "file",
            object="file",
            bytes=len(content),
            filename="upload",
            purpose=fields.get("purpose"),
            status="processed",
        )
        self._files[file["id"]] = file, content
        while sum(len(kept) for _, kept in self._files.values()) > _MOST_BYTES:
            self._files.pop(next(iter(self._files)))
        return 200, file

    def _of_file(self, method: str, file_id: str, part: str = "") -> Answer:
        if (found := self._files.get(file_id)) is None:
            return _missing("file", file_id)
        file, content = found
        if (method, part) == ("DELETE", ""):
            del self._files[file_id]
            return 200, {"id": file_id, "object": "file", "deleted": True}
        return 200, content if part == "content" else file

    def _start(self, asked: dict[str, Any]) -> Answer:
        batch = self._new("batch", object="batch", status="in_progress", errors=None)
        names = ("endpoint", "input_file_id", "completion_window", "metadata")
        batch |= {name: asked.get(name) for name in names}
        self._batches[batch["id"]] = batch
        return 200, batch

    def _of_batch(self, method: str, batch_id: str, part: str = "") -> Answer:
        if (batch := self._batches.get(batch_id)) is None:
            return _missing("batch", batch_id)
        if (method, part) == ("POST", "cancel"):
            batch["status"] = "cancelling"
        return 200, batch


def _missing(kind: str, stored_id: str) -> Answer:
    return 404, error(
        f"No such {kind}: {stored_id}", code="not_found", kind="invalid_request_error"
    )
