"""Every endpoint that streams, and a gateway whose backends serve all of them."""

import http.client
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.access.limited import key_of, keys_toml
from tests.support.metrics import Scrape, moved
from tests.support.processes import Demo, Gateway, backend_toml

WORDS = 12
"""Pieces of content in a response that nothing breaks; a transcript has fewer."""
TEXT = "one two three four five six seven eight nine ten eleven twelve"
SPOKEN_BYTES = 400
"""Of one word."""
HI = [{"role": "user", "content": "hi"}]
_EDGE = "an-edge"


@dataclass(frozen=True)
class Row:
    """A streaming endpoint.

    Attributes:
        name: The prefix of its models' names, and its key.
        piece: What each piece of content has once in the client's stream, in which no space
            follows a colon or a comma; b"" for bare bytes.
        error: What an event that tells of an error has there.
        passes_errors: The client gets the backend's own 500.
        before: Events of the backend before the first content; `pings` of them are pings.
        prompt: The tokens of the prompt, if the first event of the backend has them.
        api: The API of its backend.
        task: The task of its models.
        label: Its name in metrics.
        translation: How its requests are translated.
    """

    name: str
    path: str
    body: dict[str, Any]
    piece: bytes
    error: bytes = b'"error":{"message":'
    passes_errors: bool = False
    before: int = 0
    pings: int = 0
    prompt: int = 0
    api: str = "vllm"
    task: str = "chat"
    label: str = ""
    translation: str = ""

    @property
    def endpoint(self) -> str:
        return self.label or self.name

    @property
    def counts_tokens(self) -> bool:
        return self.task == "chat"

    def model(self, kind: str) -> str:
        return f"{self.name}-{kind}"

    def pieces_in(self, content: bytes) -> int:
        if not self.piece:
            return len(content) // SPOKEN_BYTES
        return _compact(content).count(self.piece)

    def errors_in(self, content: bytes) -> int:
        return _compact(content).count(self.error)

    @contextmanager
    def sent(
        self, gateway: Gateway, kind: str, *, fault: str = ""
    ) -> Iterator[http.client.HTTPConnection]:
        """A connection on which a stream of one of its models is requested."""
        headers = {"authorization": f"Bearer {key_of(self.name)}"}
        headers |= {"x-demo-fault": fault} if fault else {}
        body, headers["content-type"] = self._body(self.body | {"model": self.model(kind)})
        connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=20)
        with closing(connection):
            connection.request("POST", self.path, body, headers)
            yield connection

    def _body(self, fields: dict[str, Any]) -> tuple[bytes, str]:
        if self.task != "transcription":
            return json.dumps(fields).encode(), "application/json"
        parts = [f'name="{name}"\r\n\r\n{value}' for name, value in fields.items()]
        parts.append(f'name="file"; filename="a.wav"\r\n\r\n{"x" * 32_000}')
        form = "".join(f"--{_EDGE}\r\ncontent-disposition: form-data; {part}\r\n" for part in parts)
        return f"{form}--{_EDGE}--\r\n".encode(), f"multipart/form-data; boundary={_EDGE}"


def _compact(content: bytes) -> bytes:
    return content.replace(b'": ', b'":').replace(b", ", b",")


_CHAT = {"stream": True, "messages": HI, "max_tokens": WORDS}
_USAGE = {"stream_options": {"include_usage": True}}
_INPUT = {"stream": True, "input": "hi", "max_output_tokens": WORDS}
_PROMPT = {"stream": True, "prompt": "hi"}
_IN_ANTHROPICS = b'{"type":"error","error":'
ROWS = (
    Row("chat", "/v1/chat/completions", _CHAT | _USAGE, b'"delta":{"content"', before=1,
        label="chat_completions"),
    Row("completions", "/v1/completions", _PROMPT | {"max_tokens": WORDS}, b'"text":"'),
    Row("messages", "/v1/messages", _CHAT, b'"text_delta"', _IN_ANTHROPICS, before=3, pings=1,
        prompt=12, passes_errors=True),
    Row("responses", "/v1/responses", _INPUT,
        b'"response.output_text.delta"', b'{"type":"error",', before=4,
        passes_errors=True),
    Row("images", "/v1/images/generations", _PROMPT | {"partial_images": WORDS},
        b'"partial_image_index"', task="images"),
    Row("speech", "/v1/audio/speech", {"input": TEXT}, b"", task="speech"),
    Row("spoken", "/v1/audio/speech", {"input": TEXT, "stream_format": "sse"}, b'"audio":',
        task="speech", label="speech"),
    Row("transcript", "/v1/audio/transcriptions", {"stream": "true"}, b'"delta":',
        task="transcription", label="transcriptions"),
    Row("to_chat", "/v1/messages", _CHAT, b'"text_delta"', _IN_ANTHROPICS, before=1, api="openai",
        label="messages", passes_errors=True, translation="messages-to-chat"),
    Row("responses_to_chat", "/v1/responses", _INPUT, b'"response.output_text.delta"',
        b'{"type":"error",', before=1, api="openai", label="responses", passes_errors=True,
        translation="responses-to-chat"),
    Row("to_messages", "/v1/chat/completions", _CHAT, b'"delta":{"content":', before=3, pings=1,
        prompt=19, api="anthropic", label="chat_completions", translation="chat-to-messages"),
)  # fmt: skip
_LIMITS = """
[auth]
mode = "keys"
[[limits]]
name = "each"
each = ["key"]
requests = "1M/d"
tokens = "1M/d"
parallel = 1000
[costs]
price = [{ input = "1", output = "1" }]
[[budgets]]
name = "all"
usd = "1000"
per = "total"
reserve_output = 100
[circuit_breaker]
enabled = false
[routing]
strategy = "priority_only"
max_retries = 1
"""


class Fleet:
    """A gateway before two backends, each of which the configuration has once for each API.

    `first` may be struck, and its silence has a limit. `second` serves its `shared` models, too.
    """

    def __init__(self, gateway: Gateway, first: Demo, second: Demo) -> None:
        self.gateway, self.first, self.second = gateway, first, second
        self._before = self._at_rest()

    def moves(self, names: Iterable[str]) -> Counter[str]:
        """What has moved since the last call, by family and label values."""
        before, self._before = self._before, self._at_rest()
        changes = moved(before, self._before, [f"nexus_{name}" for name in names])
        return Counter(
            {
                " ".join([name.removeprefix("nexus_"), *(v for _, v in sorted(labels))]): round(n)
                for (name, labels), n in changes.items()
            }
        )

    def _at_rest(self) -> Scrape:
        """A scrape once nothing is in progress. Then nothing is reserved."""
        found = self.gateway.settled()
        for (name, labels), value in found.samples.items():
            if name == "nexus_limit_level" and ("dimension", "parallel") in labels:
                assert value == 1, labels
        for name in ("nexus_budget_held_usd", "nexus_pending_requests"):
            assert found.total(name) == 0, name
        for name in ("nexus_streams_active", "nexus_accounting_imbalance"):
            assert found.value(name) == 0, name
        return found


def _backends(demo: Demo, priority: int, *kinds: str, **settings: Any) -> Iterator[str]:
    for api in ("vllm", "openai", "anthropic"):
        dialects = ["openai"] if api == "openai" else ["openai", "responses", "anthropic"]
        settings |= {} if api == "anthropic" else {"dialects": dialects}
        lines = backend_toml(demo, priority=priority, discover_models=False, **settings)
        settings.pop("dialects", None)
        lines = lines.replace(f'"{demo.name}"', f'"{demo.name}-{api}"')
        yield lines.replace('"vllm"', '"anthropic"') if api == "anthropic" else lines
        for row in ROWS:
            for kind in kinds if row.api == api else ():
                name = row.model(kind)
                yield f'[[backends.models]]\nname = "{name}"\ntasks = ["{row.task}"]\n'


@contextmanager
def running(directory: Path, environ: dict[str, str], *, timeout_s: float) -> Iterator[Fleet]:
    """A gateway with a key for each row. `timeout_s` is how long `first` may be silent."""
    with (
        Demo(directory, name="first", pace=20) as first,
        Demo(directory, name="second", pace=0) as second,
    ):
        silences = dict.fromkeys(("first_byte_timeout_seconds", "idle_timeout_seconds"), timeout_s)
        config = (
            *_backends(first, 1, "only", "shared", **silences),
            *_backends(second, 2, "shared", "second"),
        )
        keys = keys_toml(*(row.name for row in ROWS))
        with Gateway(directory, _LIMITS + keys + "".join(config), environ=environ) as gateway:
            yield Fleet(gateway, first, second)
