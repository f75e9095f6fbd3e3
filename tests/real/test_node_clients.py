"""OpenAI's and Anthropic's clients for Node: what they make of every refusal, and their streams."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from bench.rig import npm_peer
from nexus.access.keys import digest
from nexus.fleet.limit_table import LimitTable
from tests.access.limited import key_of, keys_toml, open_stream
from tests.support.polling import until
from tests.support.processes import Demo, Gateway, backend_toml

pytestmark = pytest.mark.real

PACKAGES = "openai@7.57.0", "@anthropic-ai/sdk@1.14.0"
SCRIPT = """
import OpenAI from 'openai';
import Anthropic from '@anthropic-ai/sdk';
const base = process.env.BASE, messages = [{role: 'user', content: 'hi'}];
async function one({sdk, key, model, headers, retries}) {
  let attempts = 0;
  const options = {apiKey: key, maxRetries: retries, defaultHeaders: headers,
    fetch: (...given) => { attempts += 1; return fetch(...given); }};
  const asked = {model, messages, max_tokens: 4};
  try {
    if (sdk === 'openai')
      await new OpenAI({...options, baseURL: base + '/v1'}).chat.completions.create(asked);
    else if (sdk === 'responses')
      await new OpenAI({...options, baseURL: base + '/v1'}).responses.create({model, input: 'hi'});
    else if (sdk === 'bearer')
      await new Anthropic({...options, apiKey: null, authToken: key, baseURL: base})
        .messages.create(asked);
    else
      await new Anthropic({...options, baseURL: base}).messages.create(asked);
    return {attempts};
  } catch (error) {
    const told = error.error?.error ?? error.error ?? {};
    return {attempts, name: error.constructor.name, status: error.status, code: told.code,
            type: told.type};
  }
}
async function streams(key) {
  const openai = new OpenAI({apiKey: key, baseURL: base + '/v1'});
  const model = 'demo-small', found = {};
  let text = '', usage;
  for await (const chunk of await openai.chat.completions.create(
    {model, messages, stream: true, max_tokens: 4, stream_options: {include_usage: true}})) {
    text += chunk.choices[0]?.delta?.content ?? '';
    usage = chunk.usage ?? usage;
  }
  found.chat = [text.split(' ').length, usage.completion_tokens];
  const message = await new Anthropic({apiKey: key, baseURL: base})
    .messages.stream({model, messages, max_tokens: 4}).finalMessage();
  found.messages = [message.content[0].text.split(' ').length, message.usage.output_tokens];
  const response = await openai.responses.stream({model, input: 'hi', max_output_tokens: 4})
    .finalResponse();
  found.responses = [response.output_text.split(' ').length, response.usage.output_tokens];
  return found;
}
const cases = JSON.parse(process.env.CASES);
const found = [];
for (const each of cases) found.push(each === 'streams' ? await streams(process.env.KEY)
                                                        : await one(each));
console.log(JSON.stringify(found));
"""
CONFIG = f"""
[auth]
mode = "keys"
{keys_toml("free", "requests", "soon", "tokens", "places", "spent")}
{keys_toml("held-openai", "held-anthropic")}
[[keys]]
id = "expired"
expires = 2020-01-01
sha256 = ["{digest(key_of("expired"))}"]
[[keys]]
id = "blocked"
blocked = true
sha256 = ["{digest(key_of("blocked"))}"]
[[keys]]
id = "narrow"
models = ["other"]
endpoints = ["chat_completions", "messages"]
sha256 = ["{digest(key_of("narrow"))}"]
[[limits]]
name = "requests"
match = {{ key = "requests" }}
requests = "0/d"
suspend = true
[[limits]]
name = "soon"
match = {{ key = "soon" }}
requests = "1/s"
[[limits]]
name = "tokens"
match = {{ key = "tokens" }}
tokens = "10/d"
[[limits]]
name = "places"
match = {{ key = "places" }}
parallel = 1
[costs]
price = [{{ per_request = "0.1" }}]
[[budgets]]
name = "spent"
match = {{ key = "spent" }}
usd = "0.05"
per = "total"
[[budgets]]
name = "held"
match = {{ key = "held-*" }}
each = ["key"]
usd = "0.15"
per = "total"
"""
SDKS = ("openai", "anthropic")


@pytest.fixture(scope="module")
def gateway(module_dir: Path) -> Iterator[Gateway]:
    with (
        Demo(module_dir, name="demo", models=["demo-small"], pace=0) as demo,
        Demo(module_dir, name="slow", models=["demo-slow"], pace=1, length=2000) as slow,
        Gateway(module_dir, CONFIG + backend_toml(demo, slow)) as gateway,
    ):
        yield gateway


def case(sdk: str, key: str, *, model: str = "demo-small", retries: int = 2, **headers: str):
    return {"sdk": sdk, "key": key, "model": model, "retries": retries, "headers": headers}


def told_to_node(gateway: Gateway, *cases: Any) -> list[dict[str, Any]]:
    """What the clients make of these requests, one after the other."""
    file = npm_peer("node-clients", *PACKAGES).parent.parent / "clients.mjs"
    file.write_text(SCRIPT)
    done = subprocess.run(
        ["node", str(file)], cwd=file.parent, capture_output=True, text=True, timeout=120,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "BASE": gateway.base, "KEY": key_of("free"),
             "CASES": json.dumps(cases)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def refusal(name: str, status: int, code: str, type_: str, *, attempts: int = 1) -> dict[str, Any]:
    return {"attempts": attempts, "name": name, "status": status, "code": code, "type": type_}


@pytest.mark.parametrize("sdk", [*SDKS, "bearer"])
def test_who_may_not_is_told_at_once(gateway, sdk):
    """Neither client asks again."""
    both = {"x-nexus-key": key_of("narrow")}
    found = told_to_node(
        gateway,
        case(sdk, "sk-nobody-has-this-key-here"),
        case(sdk, key_of("expired")),
        case(sdk, key_of("blocked")),
        case(sdk, key_of("free"), **both),
        case(sdk, key_of("narrow")),
    )
    openai = sdk == "openai"
    unknown, forbidden = (
        ("invalid_request_error",) * 2 if openai else ("authentication_error", "permission_error")
    )
    codes = ("invalid_api_key", "key_expired", "key_blocked", "ambiguous_credentials")
    assert found == [
        *(refusal("AuthenticationError", 401, code, unknown) for code in codes),
        refusal("PermissionDeniedError", 403, "model_not_allowed", forbidden),
    ]


def test_an_endpoint_that_a_key_may_not_use(gateway):
    [found] = told_to_node(gateway, case("responses", key_of("narrow")))
    assert (found["name"], found["code"], found["attempts"]) == (
        "PermissionDeniedError",
        "endpoint_not_allowed",
        1,
    )


@contextmanager
def streams_open(gateway: Gateway, *ids: str) -> Iterator[None]:
    gateway.settled()
    with ExitStack() as clients:
        for id_ in ids:
            client = open_stream(gateway, id_, model="demo-slow")
            assert clients.enter_context(client).recv(12) == b"HTTP/1.1 200"
        yield


@pytest.mark.parametrize("sdk", SDKS)
def test_limits_and_budgets(gateway, sdk):
    """What may pass later is asked again, an empty budget is not."""
    with streams_open(gateway, "places", f"held-{sdk}"):
        found = told_to_node(
            gateway,
            case(sdk, key_of("requests"), retries=0),
            case(sdk, key_of("tokens"), retries=0),
            case(sdk, key_of("tokens"), retries=0),
            case(sdk, key_of("places"), retries=1),
            case(sdk, key_of(f"held-{sdk}"), retries=0),
            case(sdk, key_of("spent"), retries=2),
            case(sdk, key_of("soon")),
            case(sdk, key_of("soon")),
        )
    limit = "rate_limit_error"
    openai = sdk == "openai"

    def limited(dimension: str, *, attempts: int = 1) -> dict[str, Any]:
        type_ = dimension if openai else limit
        return refusal("RateLimitError", 429, "rate_limit_exceeded", type_, attempts=attempts)

    assert found[0] == limited("requests")
    assert limited("tokens") in found[1:3]
    assert found[3] == limited("parallel", attempts=2)
    for reply, code in zip(found[4:6], ("budget_in_flight", "insufficient_quota"), strict=True):
        assert (reply["name"], reply["status"], reply["code"]) == ("RateLimitError", 429, code)
        assert reply["attempts"] == 1
    assert [set(reply) for reply in found[6:]] == [{"attempts"}] * 2, "it slept as told"
    assert found[7]["attempts"] > 1


@pytest.mark.parametrize("sdk", SDKS)
def test_limits_that_cannot_be_read(gateway, sdk):
    [path] = Path(gateway.run_dir).rglob("limits.db")
    holder = LimitTable(path)
    assert until(holder.acquire)
    try:
        [found] = told_to_node(gateway, case(sdk, key_of("places"), retries=0))
    finally:
        holder.release()
        holder.close()
    name, type_ = {
        "openai": ("InternalServerError", "server_error"),
        "anthropic": ("ServiceUnavailableError", "overloaded_error"),
    }[sdk]
    assert found == refusal(name, 503, "limits_unavailable", type_)


def test_streams(gateway):
    [found] = told_to_node(gateway, "streams")
    assert found == {"chat": [4, 4], "messages": [4, 4], "responses": [4, 4]}
