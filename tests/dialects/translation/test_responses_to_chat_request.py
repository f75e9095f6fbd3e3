"""Requests for responses as backends get them that speak only chat completions."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import response_create_params as params

from nexus.dialects.translation import TRANSLATIONS
from nexus.dialects.translation.rules import NotStored, Untranslatable
from nexus.dialects.translation.translation import Receiver
from tests.dialects.translation.sdk import fields, objects, types_of

ONE = TRANSLATIONS["responses-to-chat"]
RULES = ONE.request_rules
FUNCTION = {"type": "function", "name": "w", "parameters": {"type": "object"}, "strict": False}


def request(*takes: str, **given: Any):
    return ONE.request(json.dumps({"model": "m", "input": "hi"} | given).encode(), Receiver(takes))


def translated(*takes: str, **given: Any) -> dict[str, Any]:
    return json.loads(request(*takes, **given).body)


def messages(*items: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    return translated(input=list(items), **more)["messages"]


def user(*content: dict[str, Any]) -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": list(content)}


def text(said: str) -> dict[str, Any]:
    return {"type": "input_text", "text": said}


def call(call_id: str, arguments: str = "{}", **more: Any) -> dict[str, Any]:
    given = {"type": "function_call", "call_id": call_id, "name": "w", "arguments": arguments}
    return given | more


def output(call_id: str, said: Any) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call_id, "output": said}


def called(call_id: str, arguments: str = "{}", name: str = "w") -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"id": call_id, "type": "function", "function": function}


def test_every_field_of_openais_package_has_a_rule():
    hints = fields(params.ResponseCreateParamsNonStreaming)
    assert set(hints) | set(fields(params.ResponseCreateParamsStreaming)) <= set(RULES)
    parts = []
    for section in ("input", "tools", "tool_choice"):
        for hint in objects(hints[section]):
            for kind in types_of(hint):
                if f"{section}.{kind}.type" in RULES:
                    names = {f"{section}.{kind}.{name}" for name in fields(hint)}
                    assert names <= set(RULES), names - set(RULES)
                    more = ("content", "output")
                    parts += [part for name in more for part in objects(fields(hint).get(name))]
                else:
                    assert f"{section}.{kind}" in RULES or f"{section}.*" in RULES
    [text_config] = objects(hints["text"])
    sections = [("content", part) for part in parts]
    sections += [("text.format", form) for form in objects(fields(text_config)["format"])]
    for section, hint in sections:
        for kind in types_of(hint):
            if f"{section}.{kind}.type" in RULES:
                assert {f"{section}.{kind}.{name}" for name in fields(hint)} <= set(RULES)
    for section in ("reasoning", "text"):
        [hint] = objects(hints[section])
        assert {f"{section}.{name}" for name in fields(hint)} <= set(RULES)


def test_the_original_detail_of_an_image_is_dropped():
    image = {"type": "input_image", "image_url": "https://x/y", "detail": "original"}
    made = request(input=[user(image)])
    [part] = json.loads(made.body)["messages"][0]["content"]
    assert part["image_url"] == {"url": "https://x/y"}
    assert made.dropped == ("content.input_image.detail",)


def test_a_request_with_all_that_is_mapped():
    made = request(
        "reasoning_effort",
        instructions="Be kind.",
        input=[
            {"role": "developer", "content": [text("Be brief.")]},
            user(
                text("hi"),
                {"type": "input_image", "image_url": "https://x/y", "detail": "low"},
                {"type": "input_image", "image_url": "https://x/z", "detail": "original"},
            ),
        ],
        max_output_tokens=9,
        temperature=0.5,
        top_p=1,
        stream=True,
        store=False,
        background=False,
        top_logprobs=0,
        tools=[
            FUNCTION | {"description": "d", "defer_loading": True},
            {"type": "web_search", "external_web_access": True},
        ],
        tool_choice={"type": "function", "name": "w"},
        parallel_tool_calls=False,
        reasoning={"effort": "xhigh", "summary": "auto"},
        text={"format": {"type": "json_schema", "name": "n", "schema": {}}, "verbosity": "low"},
        include=["reasoning.encrypted_content"],
        client_metadata={"turn_id": "t"},
        prompt_cache_key="k",
        metadata={"a": "b"},
    )
    assert json.loads(made.body) == {
        "model": "m",
        "stream": True,
        "temperature": 0.5,
        "top_p": 1,
        "max_tokens": 9,
        "messages": [
            {"role": "system", "content": "Be kind.\n\nBe brief."},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "hi"},
                    {"type": "image_url", "image_url": {"url": "https://x/y", "detail": "low"}},
                    {"type": "image_url", "image_url": {"url": "https://x/z"}},
                ],
            },
        ],
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "w",
                    "description": "d",
                    "parameters": {"type": "object"},
                },
            }
        ],
        "tool_choice": {"type": "function", "function": {"name": "w"}},
        "parallel_tool_calls": False,
        "reasoning_effort": "high",
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}}},
    }
    assert set(made.dropped) == {
        "content.input_image.detail",
        "include",
        "client_metadata",
        "prompt_cache_key",
        "reasoning.summary",
        "text.verbosity",
        "tools.function.defer_loading",
        "tools.web_search",
    }
    repeated = json.loads(b"{%b}" % made.context.repeated)
    assert len(repeated["tools"]) == 2
    assert (repeated["metadata"], repeated["instructions"]) == ({"a": "b"}, "Be kind.")


def test_what_only_some_kinds_take():
    assert translated("max_completion_tokens", max_output_tokens=9)["max_completion_tokens"] == 9
    body = b'{"model":"m","input":"hi","max_output_tokens":9}'
    made = ONE.request(body, Receiver(max_output_tokens=8)).body
    assert json.loads(made)["max_tokens"] == 8
    made = request(reasoning={"effort": "low"})
    assert made.dropped == ("reasoning.effort",)
    assert "reasoning_effort" not in json.loads(made.body)


def test_items_of_one_answer_are_one_message():
    assert messages(
        user(text("go")),
        {"type": "reasoning", "id": "rs", "summary": [], "encrypted_content": "x"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I"}]},
        call("c1"),
        call("c2", '{"a": 1.50}'),
        user(text("by the way")),
        output(
            "c2", [text("two"), {"type": "input_image", "image_url": "data:image/png;base64,A"}]
        ),
        output("c1", "one"),
        call("c3"),
        output("c3", "three"),
    ) == [
        {"role": "user", "content": "go"},
        {
            "role": "assistant",
            "content": "I",
            "tool_calls": [called("c1"), called("c2", '{"a": 1.50}')],
        },
        {"role": "tool", "tool_call_id": "c2", "content": "two"},
        {"role": "tool", "tool_call_id": "c1", "content": "one"},
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,A"}},
            ],
        },
        {"role": "user", "content": "by the way"},
        {"role": "assistant", "content": None, "tool_calls": [called("c3")]},
        {"role": "tool", "tool_call_id": "c3", "content": "three"},
    ]


def test_a_result_without_its_call_and_other_shapes():
    assert messages(
        output("c9", "late"),
        {"role": "assistant", "content": "So", "phase": "commentary"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
        {"role": "user", "content": [text("a"), text("b")]},
    ) == [
        {"role": "tool", "tool_call_id": "c9", "content": "late"},
        {
            "role": "assistant",
            "content": [{"type": "text", "text": "So"}, {"type": "text", "text": "No."}],
        },
        {
            "role": "user",
            "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
        },
    ]


def test_functions_of_namespaces_have_names_of_their_own():
    space = {"type": "namespace", "name": "ns", "description": "d", "tools": [FUNCTION]}
    long = FUNCTION | {"name": "x" * 64}
    made = request(
        tools=[
            FUNCTION,
            space,
            FUNCTION | {"name": "ns__w"},
            space | {"name": "n" * 40, "tools": [long, long | {"name": "x" * 63}]},
        ],
        input=[call("c1", namespace="ns"), call("c2"), call("c3", namespace="gone")],
    )
    body = json.loads(made.body)
    names = [tool["function"]["name"] for tool in body["tools"]]
    assert names[:3] == ["w", "ns__w", "ns__w_2"]
    assert len(set(names)) == len(names)
    assert all(len(name) <= 64 for name in names)
    assert made.context.tools == {
        "ns__w": ("ns", "w"),
        names[3]: ("n" * 40, "x" * 64),
        names[4]: ("n" * 40, "x" * 63),
    }
    [message] = body["messages"]
    assert message["tool_calls"] == [
        called("c1", name="ns__w"),
        called("c2"),
        called("c3", name="gone__w"),
    ]
    assert made.dropped == ("tools.namespace.description",)


@pytest.mark.parametrize("choice", ["auto", "required", "none"])
def test_the_choice_of_tools(choice):
    assert translated(tools=[FUNCTION], tool_choice=choice)["tool_choice"] == choice
    only = {"type": "web_search"}
    assert translated(tools=[only], tool_choice=choice) == translated()


def test_forms_of_the_response():
    assert "response_format" not in translated(text={"format": {"type": "text"}})
    made = translated(text={"format": {"type": "json_object"}})
    assert made["response_format"] == {"type": "json_object"}


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"no_such_field": 1}, "no_such_field"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"tools": [{"type": "custom", "name": "p"}]}, "tools.0"),
        ({"tools": [{"type": "mcp", "server_label": "x"}]}, "tools.0"),
        ({"tools": [FUNCTION | {"new": 1}]}, "tools.0.new"),
        (
            {"tools": [{"type": "namespace", "name": "n", "tools": [{"type": "custom"}]}]},
            "tools.0.tools.0",
        ),
        ({"tools": [FUNCTION], "tool_choice": "x"}, "tool_choice"),
        ({"tools": [FUNCTION], "tool_choice": {"type": "mcp"}}, "tool_choice"),
        ({"input": [{"type": "computer_call"}]}, "input.0"),
        ({"input": [{"content": "x"}]}, "input.0.type"),
        ({"input": [{"role": "critic", "content": "x"}]}, "input.0.role"),
        ({"input": [user({"type": "input_file"})]}, "input.0.content.0"),
        ({"input": [user(text("x") | {"new": 1})]}, "input.0.content.0.new"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format"),
        ({"input": None}, "input"),
    ],
)
def test_what_cannot_be_translated_is_refused_by_name(given, named):
    with pytest.raises(Untranslatable) as caught:
        translated(**given)
    assert (caught.value.param, caught.value.code) == (named, "not_translatable")
    assert f"`{named}`" in str(caught.value)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"store": True}, "store"),
        ({"background": True}, "background"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input.0"),
        (
            {"input": [user({"type": "input_image", "file_id": "f"})]},
            "input.0.content.0.file_id",
        ),
    ],
)
def test_what_nobody_stores_is_refused(given, named):
    with pytest.raises(NotStored) as caught:
        translated(**given)
    assert (caught.value.param, caught.value.code) == (named, "response_not_stored")


ITEMS = st.lists(
    st.one_of(
        st.builds(lambda said: user(text(said)), st.text(min_size=1, max_size=9)),
        st.builds(
            lambda said: {"role": "assistant", "content": [{"type": "output_text", "text": said}]},
            st.text(min_size=1, max_size=9),
        ),
        st.builds(
            call,
            st.sampled_from(["a", "b", "c"]),
            st.sampled_from(["{}", '{"x": 1}']),
        ),
        st.builds(output, st.sampled_from(["a", "b", "c"]), st.text(max_size=9)),
    ),
    max_size=8,
)


def said_by(role: str, made: list[dict[str, Any]]) -> list[str]:
    found = []
    for message in made:
        if message["role"] == role and message["content"] is not None:
            content = message["content"]
            parts = [{"text": content}] if isinstance(content, str) else content
            found += [part["text"] for part in parts]
    return found


@given(items=ITEMS)
def test_a_conversation_keeps_its_meaning(items):
    made = messages(*items) if items else []
    for role in ("user", "assistant"):
        given = [one["content"][0]["text"] for one in items if one.get("role") == role]
        assert said_by(role, made) == given
    calls = [one for message in made for one in message.get("tool_calls", ())]
    assert calls == [
        called(one["call_id"], one["arguments"])
        for one in items
        if one.get("type") == "function_call"
    ]
    results = [(one["tool_call_id"], one["content"]) for one in made if one["role"] == "tool"]
    expected = [
        (one["call_id"], one["output"])
        for one in items
        if one.get("type") == "function_call_output"
    ]
    assert sorted(results) == sorted(expected)
    seen: set[str] = set()
    for before, message in zip([user(), *made], made, strict=False):
        if before["role"] == "user" and message["role"] == "tool":
            assert message["tool_call_id"] not in seen, "results follow their calls"
        seen |= {one["id"] for one in message.get("tool_calls", ())}
