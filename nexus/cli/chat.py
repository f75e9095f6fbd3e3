"""`nexus chat`: one answer through the gateway, as a client gets it, with its route and its timings."""

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

from nexus.cli.gateway import NoResponse, error_message, find_gateway, gateway_options, open_request
from nexus.cli.output import Exit, Failure, counted, json_option, milliseconds, print_json
from nexus.runtime.text import printable

_SILENCE_S = 600.0
"""The gateway has its own, shorter limits, and tells which was reached."""

_TEXT = "\n\t\u00a0\u200c\u200d\u202f\u3000"
"""What a text may hold besides printable characters: line ends, tabs, spaces of other widths, joiners."""


@dataclass
class ChatResult:
    """What came of the request, as the client saw it; moments on the monotonic clock."""

    began: float
    text: list[str] = field(default_factory=list)
    first: float | None = None
    last: float | None = None
    events: int = 0
    usage: dict[str, Any] = field(default_factory=dict)
    finish: str | None = None
    error: str | None = None

    def take(self, event: dict[str, Any]) -> str:
        """Note an event of the stream, and give the text in it."""
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
@click.option("--system", help="A system message to go before it.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="The longest answer.")
@click.option("--temperature", type=float, help="Left to the backend where not given.")
@click.option(
    "-H",
    "--header",
    "headers",
    multiple=True,
    metavar="'NAME: VALUE'",
    help="A header to send besides.",
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
    config: str | None,
    url: str | None,
    as_json: bool,
) -> None:
    """Send TEXT, or standard input, to MODEL, and print the answer as it comes.

    Which backend served, why that one, when the first token came and how fast the others did is told on standard error.

    \b
    nexus chat llama3.1:8b "What is a gateway?"
    git diff | nexus chat qwen2.5:72b --system "Review this." > review.md

    It exits with 1 where the gateway answered with an error, or the stream broke off.
    """
    gateway = find_gateway(config, url)
    assert gateway.base is not None
    content = text if text not in (None, "-") else sys.stdin.read()
    messages = [{"role": "system", "content": system}] if system else []
    body: dict[str, Any] = {
        "model": model,
        "messages": [*messages, {"role": "user", "content": content}],
    }
    body |= {"max_tokens": max_tokens} if max_tokens else {}
    body |= {"temperature": temperature} if temperature is not None else {}
    base = gateway.base
    try:
        try:
            heard, response = _ask(base, body, _headers(headers), quiet=as_json)
        except NoResponse:
            if not gateway.relocate():
                raise
            base = gateway.base
            heard, response = _ask(base, body, _headers(headers), quiet=as_json)
    except NoResponse as why:
        raise gateway.unreachable({base: str(why)}) from why
    route = _route(response, heard, model)
    if as_json:
        print_json(route)
    else:
        click.echo()
        click.echo(click.style(printable(_line(route)), dim=True), err=True)
    if heard.error:
        raise Failure(f"The answer broke off: {heard.error}", status=Exit.NEGATIVE)


def _headers(given: tuple[str, ...]) -> dict[str, str]:
    found = {"content-type": "application/json", "accept": "text/event-stream"}
    for item in given:
        name, colon, value = item.partition(":")
        if not colon or not name.strip():
            raise Failure(f"{item!r} is not a header; it takes 'NAME: VALUE'.", status=Exit.USAGE)
        found[name.strip().lower()] = value.strip()
    return found


def _ask(
    base: str, body: dict[str, Any], headers: Mapping[str, str], *, quiet: bool
) -> tuple[ChatResult, HTTPResponse]:
    """Send it, and print what comes. A backend that refuses to tell the usage is asked again without."""
    target = f"{base}/v1/chat/completions"
    for options in ({"stream_options": {"include_usage": True}}, {}):
        heard = ChatResult(time.monotonic())
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
                raise Failure(error_message(response.read(), response.status), status=Exit.NEGATIVE)
            try:
                for event in _events(response):
                    piece = heard.take(event)
                    if piece and not quiet:
                        click.echo(printable(piece, keep=_TEXT), nl=False)
            except (OSError, HTTPException) as error:
                heard.error = f"the connection was lost ({error})"
        if heard.error is None and heard.finish is None:
            heard.error = "it ended without a reason for finishing"
        return heard, response
    raise AssertionError


def _events(response: HTTPResponse) -> Iterator[dict[str, Any]]:
    """The JSON of each server-sent event, as they come."""
    data: list[str] = []
    for raw in response:
        line = raw.decode(errors="replace").rstrip("\r\n")
        if line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
        elif not line and data:
            joined, data = "\n".join(data), []
            if joined == "[DONE]":
                return
            try:
                event = json.loads(joined)
            except ValueError:
                continue
            if isinstance(event, dict):
                yield event


def _route(response: HTTPResponse, heard: ChatResult, model: str) -> dict[str, Any]:
    """What is told of the answer, under the names that history and logs use."""
    ended = time.monotonic()
    tokens = heard.usage.get("completion_tokens")
    spread = heard.last - heard.first if heard.first is not None and heard.last is not None else 0.0
    further = (tokens if tokens is not None else heard.events) - 1
    return {
        "model": model,
        "text": "".join(heard.text),
        "finish_reason": heard.finish,
        "error": heard.error,
        "request_id": response.getheader("x-request-id"),
        "backend": response.getheader("x-nexus-backend"),
        "backend_type": response.getheader("x-nexus-backend-type"),
        "route_reason": response.getheader("x-nexus-route-reason"),
        "fallback_model": response.getheader("x-nexus-fallback-model"),
        "ttft_ms": round((heard.first - heard.began) * 1000, 1)
        if heard.first is not None
        else None,
        "duration_ms": round((ended - heard.began) * 1000, 1),
        "prompt_tokens": heard.usage.get("prompt_tokens"),
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
