"""Requests for messages as backends get them that speak only chat completions."""

import json
from typing import Any

import pytest
from anthropic.types import message_create_params as stable
from anthropic.types.beta import message_create_params as beta
from hypothesis import given
from hypothesis import strategies as st

from nexus.dialects.translation import TRANSLATIONS
from nexus.dialects.translation.rules import Untranslatable
from nexus.dialects.translation.translation import Receiver
from tests.dialects.translation.sdk import fields, objects, types_of

ONE = TRANSLATIONS["messages-to-chat"]
RULES = ONE.request_rules
HI = {"role": "user", "content": "hi"}


def translated(*takes: str, **given: Any) -> dict[str, Any]:
    body = {"model": "m", "max_tokens": 9, "messages": [HI]} | given
    return json.loads(ONE.request(json.dumps(body).encode(), Receiver(takes)).body)


def messages(*given: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    return translated(messages=list(given), **more)["messages"]


def user(*content: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(content)}


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


@pytest.mark.parametrize("params", [stable, beta], ids=["stable", "beta"])
def test_every_field_of_anthropics_package_has_a_rule(params):
    hints = fields(params.MessageCreateParamsNonStreaming) | fields(
        params.MessageCreateParamsStreaming
    )
    assert set(hints) <= set(RULES)
    for message in objects(hints["messages"]):
        assert {f"messages.{name}" for name in fields(message)} <= set(RULES)
    contents = [fields(message)["content"] for message in objects(hints["messages"])]
    for section, found in (
        ("content", contents),
        ("system", [hints["system"]]),
        ("tools", [hints["tools"]]),
        ("tool_choice", [hints["tool_choice"]]),
    ):
        for hint in (one for each in found for one in objects(each)):
            for kind in types_of(hint):
                if f"{section}.{kind}.type" in RULES:
                    names = {f"{section}.{kind}.{name}" for name in fields(hint)}
                    assert names <= set(RULES)
                else:
                    assert f"{section}.{kind}" in RULES or f"{section}.*" in RULES
    [output] = objects(hints["output_config"])
    assert {f"output_config.{name}" for name in fields(output)} <= set(RULES)


def test_a_conversation_with_all_that_is_mapped():
    tool = {"name": "w", "description": "d", "input_schema": {"type": "object"}, "strict": True}
    made = translated(
        system=[
            text("x-anthropic-billing-header: cch=1"),
            text("Be kind."),
            text("Be brief.") | {"cache_control": {"type": "ephemeral"}},
        ],
        temperature=0.5,
        top_p=1,
        top_k=4,
        stop_sequences=["END"],
        stream=True,
        tools=[tool | {"cache_control": {"type": "ephemeral"}, "type": "custom"}],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        thinking={"type": "enabled", "budget_tokens": 1024},
        metadata={"user_id": "u"},
        context_management={"edits": []},
        output_config={"effort": "max", "format": {"type": "json_schema", "schema": {}}},
        service_tier=None,
    )
    assert made == {
        "model": "m",
        "max_tokens": 9,
        "temperature": 0.5,
        "top_p": 1,
        "stop": ["END"],
        "stream": True,
        "messages": [{"role": "system", "content": "Be kind.\n\nBe brief."}, HI],
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "w",
                    "description": "d",
                    "parameters": {"type": "object"},
                    "strict": True,
                },
            }
        ],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "response", "schema": {}, "strict": True},
        },
    }


def test_what_only_some_kinds_take():
    made = translated(
        "top_k",
        "reasoning_effort",
        "max_completion_tokens",
        top_k=4,
        output_config={"effort": "low"},
    )
    assert made == {
        "model": "m",
        "messages": [HI],
        "max_completion_tokens": 9,
        "top_k": 4,
        "reasoning_effort": "low",
    }


@pytest.mark.parametrize(
    ("given", "effort", "dropped"),
    [
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "low", ()),
        ({"thinking": {"type": "enabled", "budget_tokens": 16000}}, "medium", ()),
        ({"thinking": {"type": "enabled", "budget_tokens": 31999}}, "high", ()),
        ({"thinking": {"type": "disabled"}}, None, ("thinking",)),
        ({"thinking": {"type": "adaptive"}}, None, ("thinking",)),
        (
            {"thinking": {"type": "adaptive", "display": "omitted"}},
            None,
            ("thinking.display", "thinking"),
        ),
        (
            {
                "thinking": {"type": "enabled", "budget_tokens": 1024},
                "output_config": {"effort": "max"},
            },
            "high",
            ("thinking",),
        ),
    ],
)
def test_how_much_the_model_reasons(given, effort, dropped):
    body = json.dumps({"model": "m", "messages": [HI]} | given).encode()
    made = ONE.request(body, Receiver(("reasoning_effort",)))
    assert json.loads(made.body).get("reasoning_effort") == effort
    assert made.dropped == dropped
    made = ONE.request(body, Receiver())
    assert "reasoning_effort" not in json.loads(made.body)
    assert "thinking" in made.dropped


def test_a_response_is_at_most_as_long_as_the_model_is_known_to_make_it():
    """Claude Code asks for 32,000 tokens, which many models refuse."""
    for asked, made in ((63, 63), (32_000, 64)):
        body = json.dumps({"model": "m", "messages": [HI], "max_tokens": asked}).encode()
        for most, sent in ((64, made), (None, asked)):
            receiver = Receiver(max_output_tokens=most)
            assert json.loads(ONE.request(body, receiver).body)["max_tokens"] == sent


def test_results_of_tools_come_first_and_their_images_after():
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA"}}
    linked = {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}}
    body = (
        b'{"model":"m","max_tokens":9,"messages":[{"role":"user","content":"go"},{"role":"assistant",'
        b'"content":[{"type":"thinking","thinking":"t","signature":"s"},'
        b'{"type":"text","text":"I look"},'
        b'{"type":"tool_use","id":"c1","name":"w","input":{"b": 1.50, "a": "\\u00e9"}}]},'
        b'{"role":"user","content":%b}]}'
        % json.dumps(
            [
                text("and?"),
                {
                    "type": "tool_result",
                    "tool_use_id": "c1",
                    "content": [text("a"), image, text("b")],
                },
                {"type": "tool_result", "tool_use_id": "c2", "is_error": True},
                linked,
            ]
        ).encode()
    )
    assert json.loads(ONE.request(body, Receiver()).body)["messages"][1:] == [
        {
            "role": "assistant",
            "content": "I look",
            "tool_calls": [
                {
                    "id": "c1",
                    "type": "function",
                    "function": {"name": "w", "arguments": '{"b": 1.50, "a": "\\u00e9"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "a\n\nb"},
        {"role": "tool", "tool_call_id": "c2", "content": ""},
        user(
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}},
            text("and?"),
            {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
        ),
    ]


def test_reasoning_goes_back_to_the_model_whose_server_calls_it_reasoning_content():
    """Some refuse a conversation with calls of tools without it, some of other models one with
    it."""
    call = {"type": "tool_use", "id": "c", "name": "w", "input": {}}
    thoughts = [
        {"type": "thinking", "thinking": thinking, "signature": signature}
        for thinking, signature in (
            ("a", "nexus reasoning_content o/m"),
            ("b", "nexus"),
            ("c", "EqQB"),
            ("d", "nexus reasoning_content o/m"),
            ("e", "nexus reasoning_content other"),
            ("f", None),
        )
    ]
    said = messages(HI, {"role": "assistant", "content": [*thoughts, call]}, model="o/m")[1]
    assert said.pop("tool_calls")
    assert said == {"role": "assistant", "content": None, "reasoning_content": "a\n\nd"}


@pytest.mark.parametrize(
    ("model", "takes", "signed"),
    [
        ("gemini-3-pro-preview", ("thought_signature",), True),
        ("models/gemini-10", ("thought_signature",), True),
        ("gemini-2.5-pro", ("thought_signature",), False),
        ("gemini-3-pro-preview", (), False),
    ],
)
def test_calls_are_signed_for_gemini(model, takes, signed):
    """It refuses them otherwise. Of several at once, it signs the first."""
    use = [{"type": "tool_use", "id": n, "name": "w", "input": {}} for n in "ab"]
    given = [HI, {"role": "assistant", "content": use}]
    calls = translated(*takes, model=model, messages=given)["messages"][1]["tool_calls"]
    unchecked = {"google": {"thought_signature": "skip_thought_signature_validator"}}
    assert [call.get("extra_content") for call in calls] == [unchecked if signed else None, None]
    item = {"type": "function_call", "call_id": "a", "name": "w", "arguments": "{}"}
    body = json.dumps({"model": model, "input": [item, item | {"call_id": "b"}]}).encode()
    made = TRANSLATIONS["responses-to-chat"].request(body, Receiver(takes)).body
    calls = json.loads(made)["messages"][0]["tool_calls"]
    assert [call.get("extra_content") for call in calls] == [unchecked if signed else None, None]


def test_content_of_other_shapes():
    assert messages(user(text("a"), text("b"))) == [user(text("a"), text("b"))]
    assert messages(user(text("a"))) == [{"role": "user", "content": "a"}]
    thought = {"type": "redacted_thinking", "data": "x"}
    assert messages(HI, {"role": "assistant", "content": [thought]})[1]["content"] == ""
    call = {"type": "tool_use", "id": "c", "name": "w", "input": {}}
    assert messages(HI, {"role": "assistant", "content": [call]})[1]["content"] is None
    assert messages(HI, {"role": "system", "content": [text("a")]})[1] == {
        "role": "system",
        "content": "a",
    }
    assert messages(HI, system="")[0] == {"role": "system", "content": ""}
    assert messages(HI, system=[]) == [HI]


@pytest.mark.parametrize(
    ("choice", "made"),
    [
        ({"type": "auto"}, "auto"),
        ({"type": "none"}, "none"),
        ({"type": "tool", "name": "w"}, {"type": "function", "function": {"name": "w"}}),
    ],
)
def test_the_choice_of_tools(choice, made):
    tools = [{"name": "w", "input_schema": {}}]
    assert translated(tools=tools, tool_choice=choice)["tool_choice"] == made
    assert "tool_choice" not in translated(tool_choice=choice)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"mcp_servers": []}, "mcp_servers"),
        ({"container": "c"}, "container"),
        ({"no_such_field": 1}, "no_such_field"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0"),
        ({"tools": [{"name": "w", "input_schema": {}, "new": 1}]}, "tools.0.new"),
        ({"tool_choice": {"type": "some"}}, "tool_choice"),
        ({"output_config": {"format": {"type": "grammar"}}}, "output_config.format"),
        ({"output_config": {"new": 1}}, "output_config.new"),
        ({"system": [{"type": "image"}]}, "system.0"),
        ({"system": 3}, "system"),
        ({"messages": [user({"type": "document", "source": {}})]}, "messages.0.content.0"),
        ({"messages": [user({"type": "text", "text": "a", "new": 1})]}, "messages.0.content.0.new"),
        ({"messages": [user({"type": "tool_use"})]}, "messages.0.content.0"),
        ({"messages": [user({"no": "type"})]}, "messages.0.content.0.type"),
        (
            {"messages": [user({"type": "image", "source": {"type": "file"}})]},
            "messages.0.content.0.source",
        ),
        ({"messages": [{"role": "critic", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": ["x"]}, "messages"),
        ({"messages": [HI | {"name": "n"}]}, "messages.0.name"),
    ],
)
def test_what_cannot_be_translated_is_refused_by_name(given, named):
    with pytest.raises(Untranslatable) as caught:
        translated(**given)
    assert caught.value.param == named
    assert f"`{named}`" in str(caught.value)


def test_json_that_is_not_strict_is_read():
    said = b'[{"role":"user","content":[{"type":"text","text":"\\ud83d"}]}]'
    made = json.loads(ONE.request(b'{"model":"m","messages":%b}' % said, Receiver()).body)
    assert made["messages"] == [{"role": "user", "content": "?"}]


BLOCKS = st.lists(st.text(max_size=9).map(text), min_size=1, max_size=4)
TURNS = st.lists(
    st.one_of(
        st.builds(lambda blocks: {"role": "user", "content": blocks}, BLOCKS),
        st.builds(lambda said: {"role": "assistant", "content": said}, st.text(min_size=1)),
        st.builds(
            lambda said, given: {
                "role": "assistant",
                "content": [
                    *said,
                    {"type": "tool_use", "id": "c", "name": "w", "input": given},
                ],
            },
            BLOCKS,
            st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=3),
        ),
        st.builds(
            lambda said: user({"type": "tool_result", "tool_use_id": "c", "content": said}),
            st.text(max_size=9),
        ),
    ),
    min_size=1,
    max_size=6,
)


def meaning(message: dict[str, Any]) -> list[Any]:
    """What a message of either protocol says, in order."""
    content = [] if message["content"] is None else message["content"]
    if message["role"] == "tool":
        return [("result", message["tool_call_id"], content)]
    blocks = [text(content)] if isinstance(message["content"], str) else content
    found: list[Any] = []
    for block in blocks:
        if block["type"] == "tool_result":
            found.append(("result", block["tool_use_id"], block["content"]))
        elif block["type"] == "tool_use":
            found.append(("call", block["id"], block["name"], block["input"]))
        else:
            found.append((message["role"], block["text"]))
    for call in message.get("tool_calls", ()):
        function = call["function"]
        found.append(("call", call["id"], function["name"], json.loads(function["arguments"])))
    return found


@given(turns=TURNS)
def test_a_conversation_keeps_its_meaning(turns):
    made, given = (
        [one for turn in both for one in meaning(turn)] for both in (messages(*turns), turns)
    )
    for results in (True, False):  # results directly follow their calls
        assert [one for one in made if (one[0] == "result") is results] == [
            one for one in given if (one[0] == "result") is results
        ]


def test_results_in_several_turns_follow_their_calls():
    image = {"type": "image", "source": {"type": "url", "url": "https://x/y"}}
    uses = [{"type": "tool_use", "id": one, "name": "w", "input": {}} for one in ("a", "b")]
    made = messages(
        {"role": "assistant", "content": uses},
        user({"type": "tool_result", "tool_use_id": "a", "content": [image]}, text("So?")),
        user({"type": "tool_result", "tool_use_id": "b"}),
        {"role": "assistant", "content": "Yes."},
    )
    assert [one["role"] for one in made] == ["assistant", "tool", "tool", "user", "assistant"]
    assert [part["type"] for part in made[3]["content"]] == ["image_url", "text"]


def test_nulls_within_objects_are_no_values():
    assert "reasoning_effort" not in translated(
        "reasoning_effort", output_config={"effort": None, "format": None}
    )
