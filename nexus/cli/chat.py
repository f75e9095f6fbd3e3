"""`nexus chat`: one response through the gateway, as a client gets it, with route and timings."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPResponse
from typing import Any

import click

from nexus.cli.gateway import Gateway, gateway_options
from nexus.cli.http_client import NoResponse, error_message, open_request
from nexus.cli.output import Exit, Failure, counted, json_option, milliseconds, print_json
from nexus.config.access_records import KEY_HEADERS
from nexus.http.sse import EventReader
from nexus.runtime.text import printable

_SILENCE_S = 600.0
"""The gateway has its own, shorter limits, and reports which was reached."""

_TEXT = "\n\t\u00a0\u200c\u200d\u202f\u3000"
"""Characters that text may hold besides printable ones: line ends, tabs, spaces and joiners."""


@dataclass
class ChatResult:
    """The response as the client saw it; times are on the monotonic clock."""

    started: float
    text: list[str] = field(default_factory=list)
    first: float | None = None
    last: float | None = None
    events: int = 0
    usage: dict[str, Any] = field(default_factory=dict)
    finish: str | None = None
    error: str | None = None

    def add_event(self, event: dict[str, Any]) -> str:
        """Record an event of the stream, and return its text."""
        if error := event.get("error"):
            self.error = str(error.get("message") if isinstance(error, dict) else error)
            return ""
        self.usage = event.get("usage") or self.usage
        piece = ""
        for choice in event.get("choices") or ():
            delta = choice.get("delta") or {}
            piece += delta.get("content") or ""
            self.finish = choice.get("finish_reason") or self.finish
            if delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning"):
                self.last = time.monotonic()
                self.first = self.first or self.last
                self.events += 1
        self.text.append(piece)
        return piece


@click.command("chat", short_help="Ask a model through the gateway.")
@click.argument("model")
@click.argument("text", required=False)
@click.option("--system", help="A system message before it.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Limit for the response.")
@click.option("--temperature", type=float, help="Default: the backend's.")
@click.option(
    "-H",
    "--header",
    "headers",
    multiple=True,
    metavar="'NAME: VALUE'",
    help="A further header.",
)
@gateway_options
@json_option
def chat(
    model: str,
    text: str | None,
    system: str | None,
    max_tokens: int | None,
    temperature: float | None,
    headers: tuple[str, ...],
    gateway: Gateway,
    as_json: bool,
) -> None:
    """Send TEXT, or standard input, to MODEL, and print the response as it comes.

    The backend, the reason for its choice and the timings are printed on standard error. A
    client's key is taken from $NEXUS_API_KEY.

    \b
    nexus chat llama3.1:8b "What is a gateway?"
    git diff | nexus chat qwen2.5:72b --system "Review this." > review.md

    It exits with 1 if the gateway responds with an error, or the stream breaks off.
    """
    assert gateway.base is not None
    content = text if text not in (None, "-") else sys.stdin.read()
    messages = [{"role": "system", "content": system}] if system else []
    body: dict[str, Any] = {
        "model": model,
        "messages": [*messages, {"role": "user", "content": content}],
    }
    body |= {"max_tokens": max_tokens} if max_tokens else {}
    body |= {"temperature": temperature} if temperature is not None else {}
    base, given = gateway.base, _headers(headers)
    with_key = not given.keys().isdisjoint([gateway.config.auth.header.lower(), *KEY_HEADERS])

    def send(base: str) -> tuple[ChatResult, HTTPResponse]:
        key = {} if with_key else gateway.client_key(base)
        return _send(base, body, given | key, quiet=as_json)

    try:
        try:
            result, response = send(base)
        except NoResponse:
            if not gateway.relocate():
                raise
            base = gateway.base
            result, response = send(base)
    except NoResponse as why:
        raise gateway.unreachable({base: str(why)}) from why
    route = _route(response, result, model)
    if as_json:
        print_json(route)
    else:
        click.echo()
        click.echo(click.style(printable(_line(route)), dim=True), err=True)
    if result.error:
        raise Failure(f"The response broke off: {result.error}", status=Exit.NEGATIVE)


def _headers(given: tuple[str, ...]) -> dict[str, str]:
    headers = {"content-type": "application/json", "accept": "text/event-stream"}
    for item in given:
        name, colon, value = item.partition(":")
        if not colon or not name.strip():
            raise Failure(f"{item!r} is not a header; use 'NAME: VALUE'.", status=Exit.USAGE)
        headers[name.strip().lower()] = value.strip()
    return headers


def _send(
    base: str, body: dict[str, Any], headers: Mapping[str, str], *, quiet: bool
) -> tuple[ChatResult, HTTPResponse]:
    """Send the request and print the response.

    If a backend rejects `stream_options`, the request is sent again without it.
    """
    target = f"{base}/v1/chat/completions"
    for options in ({"stream_options": {"include_usage": True}}, {}):
        result = ChatResult(time.monotonic())
        content = json.dumps({**body, "stream": True, **options}).encode()
        connection, response = open_request(
            "POST", target, body=content, headers=headers, timeout_s=_SILENCE_S
        )
        with closing(connection):
            if response.status in (400, 422) and options:
                refusal = response.read()
                if b"stream_options" in refusal or b"include_usage" in refusal:
                    continue
                raise Failure(error_message(refusal, response.status), status=Exit.NEGATIVE)
            if response.status != 200:
                message = error_message(response.read(), response.status)
                if response.status == 401:
                    message += " This command takes a key from $NEXUS_API_KEY."
                raise Failure(message, status=Exit.NEGATIVE)
            try:
                for event in _events(response):
                    piece = result.add_event(event)
                    if piece and not quiet:
                        click.echo(printable(piece, keep=_TEXT), nl=False)
            except (OSError, HTTPException) as error:
                result.error = f"the connection was lost ({error})"
        if result.error is None and result.finish is None:
            result.error = "it ended without a reason for finishing"
        return result, response
    raise AssertionError


def _events(response: HTTPResponse) -> Iterator[dict[str, Any]]:
    """The JSON object of each server-sent event, as they come."""
    reader = EventReader()
    while piece := response.read1():
        for event in reader.feed(piece):
            if event.data == b"[DONE]":
                return
            try:
                decoded = json.loads(event.data or b"")
            except ValueError:
                continue
            if isinstance(decoded, dict):
                yield decoded


def _route(response: HTTPResponse, result: ChatResult, model: str) -> dict[str, Any]:
    """The facts about the response, under the names that history and logs use."""
    ended = time.monotonic()
    tokens = result.usage.get("completion_tokens")
    spread = (
        result.last - result.first if result.first is not None and result.last is not None else 0.0
    )
    further = (tokens if tokens is not None else result.events) - 1
    return {
        "model": model,
        "text": "".join(result.text),
        "finish_reason": result.finish,
        "error": result.error,
        "request_id": response.getheader("x-request-id"),
        "backend": response.getheader("x-nexus-backend"),
        "backend_type": response.getheader("x-nexus-backend-type"),
        "route_reason": response.getheader("x-nexus-route-reason"),
        "fallback_model": response.getheader("x-nexus-fallback-model"),
        "ttft_ms": round((result.first - result.started) * 1000, 1)
        if result.first is not None
        else None,
        "duration_ms": round((ended - result.started) * 1000, 1),
        "prompt_tokens": result.usage.get("prompt_tokens"),
        "completion_tokens": tokens,
        "tokens_per_second": round(further / spread, 1) if further > 0 and spread > 0 else None,
    }


def _line(route: dict[str, Any]) -> str:
    served = f"{route['backend']} ({route['backend_type']}, {route['route_reason']})"
    parts = [served + (f" with {route['fallback_model']}" if route["fallback_model"] else "")]
    parts.append(f"first token after {milliseconds(route['ttft_ms'])}")
    if route["completion_tokens"] is not None:
        parts.append(f"{route['prompt_tokens']}+{counted(route['completion_tokens'], 'token')}")
    if route["tokens_per_second"]:
        parts.append(f"{route['tokens_per_second']:g} tokens/s")
    parts.append(f"{milliseconds(route['duration_ms'])} in all")
    if route["finish_reason"] not in (None, "stop"):
        parts.append(f"ended by {route['finish_reason']}")
    return " · ".join(parts)
