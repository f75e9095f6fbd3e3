"""OpenAI's clients on backends that speak only Anthropic's API."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion
from openai.types.chat import completion_create_params as params

from nexus.dialects import anthropic
from nexus.dialects.translation import TRANSLATIONS
from nexus.dialects.translation.rules import BadResponse, Untranslatable
from nexus.dialects.translation.translation import NO_CONTEXT, Receiver
from tests.dialects.translation.grammar import check_chat
from tests.dialects.translation.sdk import fields, objects, types_of

ONE = TRANSLATIONS["chat-to-messages"]
RULES = ONE.request_rules
CORPUS = Path(__file__).parents[2] / "corpus" / "streams"
STREAMS = {file.stem: file.read_bytes() for file in CORPUS.glob("messages-*.sse")}
HI = {"role": "user", "content": "hi"}
SAID = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]


def translated(**given: Any) -> dict[str, Any]:
    return json.loads(
        ONE.request(json.dumps({"model": "m", "messages": [HI]} | given).encode(), Receiver()).body
    )


def stream(data: bytes, size: int = 10**6):
    reader = ONE.open_stream(clock=lambda: 1.0, hide_usage=False, own_key=None)
    shown = b"".join([reader.feed(data[at : at + size]) for at in range(0, len(data), size)])
    return check_chat(shown + reader.end() + reader.end()), reader


@pytest.mark.parametrize("name", STREAMS)
def test_every_recording_follows_the_grammar_however_it_is_cut(name):
    data = STREAMS[name]
    grammar, reader = stream(data)
    plain = anthropic.open_stream(clock=lambda: 1.0)
    plain.feed(data), plain.end()
    for field in ("events", "usage", "finished", "error", "content", "first_token_at", "done"):
        assert getattr(reader, field) == getattr(plain, field), field
    assert (grammar.state == "end") == plain.finished
    assert (grammar.state == "error") == (plain.error is not None)
    if plain.finished:
        assert grammar.usage["prompt_tokens"] == plain.usage.prompt_tokens
        assert grammar.usage["completion_tokens"] == plain.usage.completion_tokens
    for size in (*range(1, 20), 64):
        again, _ = stream(data, size)
        assert vars(again) == vars(grammar), size
    for at in range(0, len(data), 7):
        cut, reader = stream(data[:at])
        assert (cut.state == "end") == reader.finished


def test_text_thinking_and_calls_are_what_the_backend_said():
    grammar, _ = stream(STREAMS["messages-tools"])
    assert grammar.finish == "tool_calls"
    assert [json.loads(grammar.said[n]) for n in range(len(grammar.tools))]
    grammar, _ = stream(STREAMS["messages-thinking"])
    assert grammar.said["reasoning_content"]
    assert grammar.said["content"]
    assert grammar.usage["prompt_tokens_details"] == {"cached_tokens": 30, "cache_write_tokens": 5}


def test_what_comes_with_the_start_of_a_block_is_not_lost():
    """Clients parse the arguments of a call that has none, too."""
    blocks = [
        {"type": "thinking", "thinking": "Hm"},
        {"type": "text", "text": "So"},
        {"type": "tool_use", "id": "c1", "name": "whole", "input": {"a": 1.50}},
        {"type": "tool_use", "id": "c2", "name": "none", "input": {}},
        {"type": "tool_use", "id": "c3", "name": "pieces", "input": {"b": 1}},
        {"type": "tool_use", "id": "c4", "name": "null", "input": None},
        {"type": "tool_use", "id": "c5", "name": "unended", "input": {}},
    ]
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": {"id": "m1", "model": "m", "content": []}}
    ]
    for n, block in enumerate(blocks):
        events.append({"type": "content_block_start", "index": n, "content_block": block})
        for piece in ("", '{"b":', " 2}") if n == 4 else ("",) if n == 3 else ():
            delta = {"type": "input_json_delta", "partial_json": piece}
            events.append({"type": "content_block_delta", "index": n, "delta": delta})
        if n < 6:
            events.append({"type": "content_block_stop", "index": n})
    events.append({"type": "message_delta", "delta": {"stop_reason": "tool_use"}})
    events.append({"type": "message_stop"})
    grammar, _ = stream(
        b"".join(
            b"event: %b\ndata: %b\n\n" % (one["type"].encode(), json.dumps(one).encode())
            for one in events
        )
    )
    assert grammar.said == {
        "reasoning_content": "Hm",
        "content": "So",
        0: '{"a": 1.5}',
        1: "{}",
        2: '{"b": 2}',
        3: "{}",
        4: "{}",
    }


def test_every_field_of_openais_package_has_a_rule():
    hints = fields(params.CompletionCreateParamsNonStreaming)
    assert set(hints) | set(fields(params.CompletionCreateParamsStreaming)) <= set(RULES)
    for message in objects(hints["messages"]):
        assert {f"messages.{name}" for name in fields(message)} <= set(RULES)
        for part in objects(fields(message)["content"]):
            [kind] = types_of(part)
            if f"content.{kind}.type" in RULES:
                assert {f"content.{kind}.{name}" for name in fields(part)} <= set(RULES)
    for section in ("tools", "tool_choice"):
        for hint in objects(hints[section]):
            [kind] = types_of(hint)
            if f"{section}.{kind}.type" in RULES:
                assert {f"{section}.{kind}.{name}" for name in fields(hint)} <= set(RULES)


def test_a_conversation_with_all_that_is_mapped():
    cached = {"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}}
    call = {"id": "c1", "type": "function", "function": {"name": "w", "arguments": '{"a": 1.50}'}}
    made = translated(
        messages=[
            {"role": "system", "content": [cached]},
            {"role": "developer", "content": "Be brief."},
            HI,
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "fine"},
            {
                "role": "user",
                "name": "n",
                "content": [
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}},
                    {"type": "image_url", "image_url": {"url": "https://x/y", "detail": "low"}},
                ],
            },
        ],
        max_completion_tokens=9,
        temperature=1.5,
        stop="END",
        stream=True,
        stream_options={"include_usage": True},
        tools=[{"type": "function", "function": {"name": "w", "description": "d"}}],
        parallel_tool_calls=False,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {}}},
        n=1,
        logprobs=False,
        seed=7,
    )
    assert made == {
        "model": "m",
        "stream": True,
        "max_tokens": 9,
        "temperature": 1.0,
        "stop_sequences": ["END"],
        "system": [cached, {"type": "text", "text": "Be brief."}],
        "messages": [
            *SAID,
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "c1", "name": "w", "input": {"a": 1.5}}],
            },
            {
                "role": "user",
                "content": [
                    {
                        "type": "tool_result",
                        "tool_use_id": "c1",
                        "content": [{"type": "text", "text": "fine"}],
                    },
                    {
                        "type": "image",
                        "source": {"type": "base64", "media_type": "image/png", "data": "AA"},
                    },
                    {"type": "image", "source": {"type": "url", "url": "https://x/y"}},
                ],
            },
        ],
        "tools": [
            {
                "name": "w",
                "description": "d",
                "input_schema": {"type": "object", "properties": {}},
            }
        ],
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
        "output_config": {"format": {"type": "json_schema", "schema": {}}},
    }
    assert translated() == {"model": "m", "max_tokens": 4096, "messages": SAID}
    body = json.dumps({"model": "m", "messages": [HI]}).encode()
    assert json.loads(ONE.request(body, Receiver(max_output_tokens=64)).body)["max_tokens"] == 64
    for asked, made in ((63, 63), (65, 64)):
        body = json.dumps({"model": "m", "messages": [HI], "max_tokens": asked}).encode()
        sent = ONE.request(body, Receiver(max_output_tokens=64)).body
        assert json.loads(sent)["max_tokens"] == made


def test_what_the_backend_would_refuse_is_left_out():
    call = {"id": "c1", "type": "function", "function": {"name": "w", "arguments": ""}}
    messages = [
        {"role": "system", "content": ""},
        HI,
        {"role": "assistant", "content": "", "tool_calls": []},
        {"role": "assistant", "content": None},
        {"role": "user", "content": [{"type": "text", "text": ""}]},
        HI,
        {"role": "assistant", "content": "\n\n", "refusal": " ", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": ""},
    ]
    tools = [
        {"type": "function", "function": {"name": "w"} | more}
        for more in ({}, {"parameters": {}}, {"parameters": None, "description": None})
    ]
    made = translated(messages=messages, tools=tools, temperature=0.5, top_p=1.0)
    result = {"type": "tool_result", "tool_use_id": "c1", "content": []}
    assert made == {
        "model": "m",
        "max_tokens": 4096,
        "temperature": 0.5,
        "messages": [
            {"role": "user", "content": SAID[0]["content"] * 2},
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "c1", "name": "w", "input": {}}],
            },
            {"role": "user", "content": [result]},
        ],
        "tools": [{"name": "w", "input_schema": {"type": "object", "properties": {}}}] * 3,
    }
    assert translated(top_p=1)["top_p"] == 1
    assert translated(temperature=1, top_p=0.9)["top_p"] == 0.9


@pytest.mark.parametrize(
    ("choice", "made"),
    [
        ("auto", {"type": "auto"}),
        ("required", {"type": "any"}),
        ("none", {"type": "none"}),
        ({"type": "function", "function": {"name": "w"}}, {"type": "tool", "name": "w"}),
    ],
)
def test_the_choice_of_tools(choice, made):
    tools = [{"type": "function", "function": {"name": "w"}}]
    assert translated(tools=tools, tool_choice=choice)["tool_choice"] == made
    assert "tool_choice" not in translated(tool_choice=choice)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"functions": []}, "functions"),
        ({"no_such_field": 1}, "no_such_field"),
        ({"temperature": "hot"}, "temperature"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [{"type": "custom", "custom": {}}]}, "tools.0"),
        ({"tools": [{"type": "function", "function": {}}], "tool_choice": "x"}, "tool_choice"),
        ({"messages": [{"role": "function", "content": "x"}]}, "messages.0.role"),
        ({"messages": [HI | {"new": 1}]}, "messages.0.new"),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
            "messages.0.content.0",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": "["}}]}]},
            "messages.0.tool_calls.0.function.arguments",
        ),
    ],
)
def test_what_cannot_be_translated_is_refused_by_name(given, named):
    with pytest.raises(Untranslatable) as caught:
        translated(**given)
    assert caught.value.param == named


def test_a_whole_message_is_a_completion():
    message = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [
            {"type": "thinking", "thinking": "Hm", "signature": "s"},
            {"type": "text", "text": "So"},
            {"type": "tool_use", "id": "c1", "name": "w", "input": {"a": 1}},
        ],
        "stop_reason": "tool_use",
        "usage": {"input_tokens": 10, "cache_read_input_tokens": 20, "output_tokens": 4},
    }
    completion = ChatCompletion.model_validate_json(
        ONE.response(json.dumps(message).encode(), NO_CONTEXT), strict=True
    )
    [choice] = completion.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "So")
    assert choice.message.reasoning_content == "Hm"
    [call] = choice.message.tool_calls
    assert (call.id, call.function.name, call.function.arguments) == ("c1", "w", '{"a": 1}')
    used = completion.usage
    assert (used.prompt_tokens, used.completion_tokens, used.total_tokens) == (30, 4, 34)
    assert used.prompt_tokens_details.cached_tokens == 20
    for body in (b"[]", b"{}"):
        with pytest.raises(BadResponse):
            ONE.response(body, NO_CONTEXT)


TEXTS = st.text(min_size=1, max_size=9).filter(str.strip)  # blank ones are left out
TURNS = st.lists(
    st.one_of(
        st.builds(lambda said: {"role": "user", "content": said}, TEXTS),
        st.builds(lambda said: {"role": "assistant", "content": said}, TEXTS),
        st.builds(lambda said: {"role": "tool", "tool_call_id": "c", "content": said}, TEXTS),
    ),
    min_size=1,
    max_size=6,
)


@given(turns=TURNS)
def test_a_conversation_comes_back_from_there(turns):
    """Both translations in turn keep who said what, in order."""
    there = ONE.request(json.dumps({"model": "m", "messages": turns}).encode(), Receiver()).body
    back = json.loads(TRANSLATIONS["messages-to-chat"].request(there, Receiver()).body)["messages"]
    said: list[tuple[str, str]] = []
    for message in back:
        content = message["content"]
        parts = [{"text": content}] if isinstance(content, str) else content
        said += [(message["role"], part["text"]) for part in parts]
    results = [("tool", turn["content"]) for turn in turns if turn["role"] == "tool"]
    assert [one for one in said if one[0] == "tool"] == results
    assert [one for one in said if one[0] != "tool"] == [
        (turn["role"], turn["content"]) for turn in turns if turn["role"] != "tool"
    ]


def test_fields_within_functions_images_and_schemas_are_dropped_or_refused():
    image = {"url": "https://x/y", "detail": "low"}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": {}, "strict": False}}
    said = [{"role": "user", "content": [{"type": "image_url", "image_url": image}]}]
    body = {"model": "m", "messages": said, "response_format": form}
    assert ONE.request(json.dumps(body).encode(), Receiver()).dropped == (
        "content.image_url.image_url.detail",
        "response_format.json_schema.name",
        "response_format.json_schema.strict",
    )
    with pytest.raises(Untranslatable) as caught:
        translated(tools=[{"type": "function", "function": {"name": "w", "new": 1}}])
    assert caught.value.param == "tools.0.function.new"
