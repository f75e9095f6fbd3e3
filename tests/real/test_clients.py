"""Real client libraries in front of the gateway: each does what its users do first."""

import json
import subprocess
from pathlib import Path

import pytest

from bench.rig import npm_peer, peer
from tests.support.processes import Demo, Gateway, backend_toml

pytestmark = pytest.mark.real

NODE = """
import OpenAI from 'openai';
const client = new OpenAI({baseURL: process.env.BASE + '/v1', apiKey: 'unused', maxRetries: 0});
const messages = [{role: 'user', content: 'hello'}];
const whole = await client.chat.completions.create({model: 'demo-small', messages});
let text = '', usage;
const stream = await client.chat.completions.create(
  {model: 'demo-small', messages, stream: true, stream_options: {include_usage: true}});
for await (const chunk of stream) {
  text += chunk.choices[0]?.delta?.content ?? '';
  usage = chunk.usage ?? usage;
}
const embedded = await client.embeddings.create({model: 'demo-small', input: ['a', 'b']});
const models = (await client.models.list()).data.map(model => model.id);
const missing = await client.chat.completions.create({model: 'no-such', messages})
  .catch(error => error.status);
console.log(JSON.stringify({whole: whole.usage.total_tokens > 0, text: text.length > 0,
  usage: usage.total_tokens > 0, embedded: embedded.data.length, models, missing}));
"""
AI_SDK = """
import {createOpenAICompatible} from '@ai-sdk/openai-compatible';
import {generateText, streamText} from 'ai';
const provider = createOpenAICompatible({name: 'nexus', baseURL: process.env.BASE + '/v1'});
const {text} = await generateText({model: provider('demo-small'), prompt: 'hello'});
let streamed = '';
const {textStream} = streamText({model: provider('demo-small'), prompt: 'hello'});
for await (const piece of textStream) streamed += piece;
console.log(JSON.stringify({text: text.length > 0, streamed: streamed.length > 0}));
"""
LANGCHAIN = """
import json, os
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
base = os.environ["BASE"] + "/v1"
chat = ChatOpenAI(model="demo-small", base_url=base, api_key="unused", max_retries=0)
texts = ["word " * 160] * 200
embeddings = OpenAIEmbeddings(model="demo-small", base_url=base, api_key="unused",
                              check_embedding_ctx_length=False)
vectors = embeddings.embed_documents(texts)
streamed = "".join(piece.content for piece in chat.stream("hello"))
print(json.dumps({"whole": bool(chat.invoke("hello").content),
                  "streamed": bool(streamed), "vectors": len(vectors)}))
"""
LITELLM = """
import json, os, litellm
ask = {"model": "openai/demo-small", "api_base": os.environ["BASE"] + "/v1", "api_key": "unused",
       "messages": [{"role": "user", "content": "hello"}]}
stream = litellm.completion(**ask, stream=True)
text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
whole = litellm.completion(**ask).choices[0].message.content
print(json.dumps({"whole": bool(whole), "streamed": bool(text)}))
"""
JAVA = """
import java.net.URI;
import java.net.http.*;
public class Client {
  public static void main(String[] a) throws Exception {
    var message = "{\\"role\\":\\"user\\",\\"content\\":\\"hello\\"}";
    var body = "{\\"model\\":\\"demo-small\\",\\"messages\\":[" + message + "]}";
    var request = HttpRequest.newBuilder(URI.create(System.getenv("BASE") + "/v1/chat/completions"))
        .header("content-type", "application/json")
        .POST(HttpRequest.BodyPublishers.ofString(body)).build();
    var client = HttpClient.newHttpClient();
    var first = client.send(request, HttpResponse.BodyHandlers.ofString());
    var second = client.send(request, HttpResponse.BodyHandlers.ofString());
    var statuses = first.statusCode() + "," + second.statusCode();
    System.out.println("{\\"statuses\\": [" + statuses + "]}");
  }
}
"""


@pytest.fixture(scope="module")
def gateway(module_dir: Path):
    with (
        Demo(module_dir, name="demo", models=["demo-small"], pace=0) as demo,
        Gateway(module_dir, backend_toml(demo)) as gateway,
    ):
        yield gateway


def run(command: list[str], gateway: Gateway, cwd: Path) -> dict:
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=300,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(cwd), "BASE": gateway.base,
             "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def node(name: str, script: str, gateway: Gateway, *requirements: str) -> dict:
    programs = npm_peer(name, *requirements)
    file = programs.parent.parent / "client.mjs"
    file.write_text(script)
    return run(["node", str(file)], gateway, file.parent)


def test_the_openai_client_for_node(gateway: Gateway):
    assert node("openai-node", NODE, gateway, "openai@7.57.0") == {
        "whole": True,
        "text": True,
        "usage": True,
        "embedded": 2,
        "models": ["demo-small"],
        "missing": 404,
    }


def test_the_ai_sdk(gateway: Gateway):
    assert node("ai-sdk", AI_SDK, gateway, "ai@7.0.173", "@ai-sdk/openai-compatible@3.0.92") == {
        "text": True,
        "streamed": True,
    }


def test_langchain_with_two_hundred_documents(gateway: Gateway, tmp_path: Path):
    python = peer("langchain", "langchain-openai==1.7.4").parent / "python"
    assert run([str(python), "-c", LANGCHAIN], gateway, tmp_path) == {
        "whole": True,
        "streamed": True,
        "vectors": 200,
    }


def test_litellm_as_a_client(gateway: Gateway, tmp_path: Path):
    python = peer("litellm", "litellm[proxy]==1.106.12").parent / "python"
    assert run([str(python), "-c", LITELLM], gateway, tmp_path) == {"whole": True, "streamed": True}


def test_the_jdk_client_that_offers_http2(gateway: Gateway, tmp_path: Path):
    file = tmp_path / "Client.java"
    file.write_text(JAVA)
    assert run(["java", str(file)], gateway, tmp_path) == {"statuses": [200, 200]}
