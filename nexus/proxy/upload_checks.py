"""The checks that store a body: a form with files, whose model they find, or any other."""

from __future__ import annotations

from collections.abc import Callable

from nexus.dialects.base import ParsedRequest
from nexus.dialects.form_reader import FormField, FormReader, MalformedForm
from nexus.errors import RequestFailed
from nexus.proxy.exchange import Exchange
from nexus.proxy.upload import IN_MEMORY, Upload
from nexus.routing.needs import Requirements

_NAMES = frozenset({"model", "stream", "n"})
"""Fields that the gateway reads."""


def read_upload(exchange: Exchange) -> None:
    """Read a form, and find its model. Raises `RequestFailed`."""
    try:
        reader = FormReader(exchange.request.header("content-type") or "", _NAMES)
        store_body(exchange, reader.feed)
        reader.end()
    except MalformedForm as error:
        raise RequestFailed("body_malformed", str(error)) from error
    _parse(exchange, reader.fields)


def store_body(exchange: Exchange, feed: Callable[[bytes], object] | None = None) -> None:
    """Read a body and store it; `feed` gets each piece. Raises `RequestFailed`, and what `feed`
    raises."""
    engine, request = exchange.engine, exchange.request
    exchange.view = engine.view()
    if request.header("content-encoding") not in (None, "identity"):
        raise RequestFailed("unsupported_encoding", "An upload must not be encoded.")
    server = exchange.view.snapshot.config.server
    started = engine.clock()
    engine.recorder.reading_body(1)
    try:
        upload = exchange.upload = Upload(server.spool_dir, engine.recorder.spooled)
        exchange.on_release(upload.close)

        def take(piece: bytes) -> None:
            if feed is not None:
                feed(piece)
            upload.write(piece)
            if len(upload) <= IN_MEMORY:
                engine.buffers.hold(request, len(piece))
            elif request.held:
                engine.buffers.release(request)

        assert request.consume is not None, "servers that take forms give it"
        request.consume(server.max_upload_bytes, take)
    finally:
        engine.recorder.reading_body(-1)
        exchange.waited_s = engine.clock() - started
    if len(upload):
        engine.recorder.uploaded(len(upload))


def _parse(exchange: Exchange, fields: dict[str, FormField]) -> None:
    model, stream, choices = fields.get("model"), fields.get("stream"), fields.get("n")
    deployment = exchange.request.target.deployment
    name = deployment or (model.value if model else "")
    if not name:
        raise RequestFailed("invalid_request", "The form must name a `model`.", param="model")
    exchange.form_model = model
    exchange.parsed = ParsedRequest(
        model=name,
        stream=stream is not None and stream.value.strip().lower() == "true",
        needs=Requirements(
            dialect=exchange.endpoint.dialect.NAME, task=exchange.endpoint.form.task
        ),
        fields={} if choices is None else {"n": choices.value.strip().encode()},
    )
