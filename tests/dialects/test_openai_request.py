"""What is read of a request's body."""

import contextlib
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.dialects.base import InvalidBody, ParsedRequest, PromptField, RequestForm
from nexus.dialects.json_body import replace_model
from nexus.dialects.openai.request import parse_request


def read(body: bytes, names: tuple[str, ...], *, task: str = "") -> ParsedRequest:
    prompts = tuple(PromptField(name=name, messages=name == "messages") for name in names)
    return parse_request(body, RequestForm(prompts=prompts, task=task))


def chat(**more) -> bytes:
    return json.dumps(
        {"model": "m", "messages": [{"role": "user", "content": "x" * 400}], **more}
    ).encode()


def needs_of(more, *required):
    needs = read(chat(**more), required or ("messages",), task="t").needs
    return needs.task, needs.vision, needs.tools, needs.json_mode


@pytest.mark.parametrize(
    ("more", "vision", "tools", "json_mode"),
    [
        ({}, False, False, False),
        ({"tools": [{"type": "function"}]}, False, True, False),
        ({"tools": []}, False, False, False),
        ({"tools": None}, False, False, False),
        ({"response_format": {"type": "json_object"}}, False, False, True),
        ({"response_format": {"type": "text"}}, False, False, False),
        ({"response_format": {"x": '"type": "json_object"'}}, False, False, False),
        ({"messages": [{"content": [{"type": "image_url", "image_url": {}}]}]}, True, False, False),
        (
            {"messages": [{"content": [{"type": "text", "text": '"type": "image_url"'}]}]},
            False,
            False,
            False,
        ),
        ({"messages": [{"content": None, "tool_calls": []}]}, False, False, False),
    ],
)
def test_needs(more, vision, tools, json_mode):
    assert needs_of(more) == ("t", vision, tools, json_mode)


def context(name: str, value, **more) -> int:
    body = json.dumps({"model": "m", name: value, **more}).encode()
    return read(body, (name,)).needs.context


TEXT = "Всё это — текст.\n" * 100


@pytest.mark.parametrize("escaped", [True, False])
def test_characters_count_and_not_their_bytes_or_escapes(escaped):
    body = json.dumps({"model": "m", "prompt": TEXT}, ensure_ascii=escaped).encode()
    assert read(body, ("prompt",)).needs.context == pytest.approx(len(TEXT) / 4, rel=0.01)


@pytest.mark.parametrize(
    ("value", "tokens"),
    [
        ("x" * 800, 200),
        (["x" * 800] * 41, 200),
        (["x", "x" * 4000, "x" * 8], 1000),
        (list(range(10_000, 15_000)), 5000),
        ([[1, 2, 3], list(range(300)), [7]], 300),
        ([[1] * 300] * 4, 300),
        ([], 1),
        ([[]], 1),
        ('say "x" ' * 100, 200),
        (["a\nb" * 100], 75),
    ],
)
@pytest.mark.parametrize("name", ["input", "prompt"])
def test_a_list_counts_its_longest_item_and_ids_are_tokens(name, value, tokens):
    assert context(name, value) == pytest.approx(tokens, abs=1)


def test_system_text_tools_and_images_are_in_the_estimate():
    user = {"role": "user", "content": "x" * 400}
    assert context("messages", [user]) == pytest.approx(110, abs=3)
    assert context("messages", [{"role": "system", "content": "y" * 4000}, user]) == pytest.approx(
        1120, abs=5
    )
    assert (
        context("messages", [user], tools=[{"type": "function", "function": {"name": "z" * 4000}}])
        > 1100
    )
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 1_000_000}}
    assert context("messages", [{"role": "user", "content": [image, image]}]) == pytest.approx(
        2000, abs=50
    )


def test_stream_and_model():
    ask = read(chat(stream=True), ("messages",))
    assert (ask.model, ask.stream) == ("m", True)
    assert read(chat(stream=None), ("messages",)).stream is False


@pytest.mark.parametrize(
    ("required", "body"),
    [
        (("input", "messages"), {"messages": [{"content": "x"}]}),
        (("prompt", "prompt_embeds"), {"prompt_embeds": "AAAA"}),
        (("prompt", "prompt_embeds"), {"prompt": None, "prompt_embeds": "AAAA"}),
        (("prompt",), {"prompt": ""}),
        (("input",), {"input": []}),
    ],
)
def test_one_of_several_fields_is_enough(required, body):
    assert read(json.dumps({"model": "m", **body}).encode(), required).model == "m"


KEYS = (
    "model",
    "stream",
    "stream_options",
    "messages",
    "prompt",
    "input",
    "tools",
    "response_format",
    "max_tokens",
)
BASE = (
    b'"model":"m","messages":[{}],"stream":false,"stream_options":{},"prompt":"p","input":"i",'
    b'"tools":[],"response_format":{},"max_tokens":1'
)


@pytest.mark.parametrize("space", ["", " ", "\n    "])
@pytest.mark.parametrize("key", KEYS)
def test_a_key_given_twice_is_refused(key, space):
    base = BASE.replace(b",", f",{space}".encode())
    assert read(b"{%b}" % base, ("messages",)).model == "m"
    for twice in (f'"{key}":null', f'"\\u00{ord(key[0]):02x}{key[1:]}" : 1'):
        for body in (b"{%b,%b}" % (base, twice.encode()), b"{%b,%b}" % (twice.encode(), base)):
            with pytest.raises(InvalidBody, match=f"`{key}` is given 2 times.") as refused:
                read(body, ("messages",))
            assert refused.value.param == key


@pytest.mark.parametrize(
    "key", [*map(str.title, KEYS), *map(str.upper, KEYS), "\u017ftream", "tool\u017f"]
)
def test_a_key_in_another_case_is_refused(key):
    for base in (BASE, b'"model":"m","messages":[{}]'):
        with pytest.raises(InvalidBody, match=f"`{key}` must be written `"):
            read(b'{%b,"%b":"x"}' % (base, key.encode()), ("messages",))


def test_other_keys_may_come_twice_or_in_any_case():
    body = (
        b'{"Temperature":1, "seed":1, "seed":2, "model":"m", "messages":[{}], '
        b'"x":{"model":1,"model":2,"Stream":1}}'
    )
    assert read(body, ("messages",)).model == "m"
    assert replace_model(body, "n") == body.replace(b'"m"', b'"n"')


def test_a_repetition_hidden_in_a_longer_value_is_detected():
    """Where each value would end is not taken for granted: here the second `a` is as long as all
    before its end."""
    hidden = b'1,"model":"x","b":{"c":[1]},"d":"eeeeeeeeee"'
    body = b'{"a":%b,"model":"y","messages":[{}],"a":"%b"}' % (hidden, b"z" * (len(hidden) - 2))
    with pytest.raises(InvalidBody, match="`model` is given 2 times"):
        read(body, ("messages",))


LOOSE = [
    b'{"model":"m","temperature":NaN,"messages":[{"content":"x"}]}',
    b'{"model":"m","a":[-Infinity, Infinity,NaN ],"messages":[{"content":"x NaN, Infinity"}]}',
    b'{"messages":[{"content":"\\ud83d"}],"model":"m"}',
    b'{"messages":[{"content":"\\uD83D\\uDE00 \\ude00\\ud83d"}],"model":"m"}',
    b'\xef\xbb\xbf{"model":"m","messages":[{"content":"x"}]}',
    b'{"messages":[{"content":"\xed\xa0\xbd"}],"model":"m"}',
]


@pytest.mark.parametrize("body", LOOSE)
def test_what_strict_json_cannot_say_passes_as_it_came(body):
    assert read(body, ("messages",)).model == "m"
    assert read(body, ("messages",)).needs.context >= 0
    assert replace_model(body, "other/ü") == body.replace(b'"m"', '"other/ü"'.encode())


def test_a_model_beside_loose_json_keeps_its_name():
    body = b'{"seed":NaN,"model":"org:NaN-\\ud83d\\ude00","messages":[{}]}'
    assert read(body, ("messages",)).model == "org:NaN-\U0001f600"


@pytest.mark.parametrize(
    "body", [b'{"a":nan}', b'{"a":NaN5}', b"{oops", b'{"a":"\xff"}', b"\xef\xbb\xbf", b'{"a":-NaN}']
)
def test_what_nobody_reads_is_refused(body):
    with pytest.raises(InvalidBody, match="not valid JSON") as refused:
        read(body, ("messages",))
    assert refused.value.json is False


@given(st.binary(max_size=30))
def test_any_bytes_are_read_or_refused(body):
    """30 bytes are too few for a good request: whatever they are, they are refused with a
    sentence."""
    with pytest.raises(InvalidBody, match=r"\w.*"):
        read(body, ("messages",))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(
    st.dictionaries(st.text(max_size=6), values, max_size=6),
    st.sampled_from([None, 1]),
    st.booleans(),
)
def test_with_model_changes_the_model_only(fields, indent, ascii_only):
    body = json.dumps({**fields, "model": "old"}, indent=indent, ensure_ascii=ascii_only).encode()
    assert json.loads(replace_model(body, "new/ü")) == {**fields, "model": "new/ü"}


def test_with_model_keeps_all_other_bytes():
    body = b'{"a": 1.50, "model" :\t"x", "b": {"c" : [ 1]} }\n'
    assert replace_model(body, "y") == body.replace(b'"x"', b'"y"')


def test_bodies_nested_to_any_depth_are_read_or_refused():
    for depth in (10, *range(900, 1100)):
        body = b'{"model":"m","messages":[{}],"x":%b%b}' % (b"[" * depth, b"]" * depth)
        with contextlib.suppress(InvalidBody):
            assert read(body, ("messages",)).model == "m"
        with contextlib.suppress(InvalidBody):
            assert replace_model(body, "n") == body.replace(b'"m"', b'"n"')


SIZE = 4 * 1024 * 1024
COSTLY = [b"{},", b"[],", b'"",', b"0,", b'{"content":[{}]},', b'{"a":NaN},', b'"\\ud83d",']


def processor_time(body: bytes) -> float:
    best = float("inf")
    for _ in range(3):
        began = time.process_time()
        needs = read(body, ("messages",)).needs
        assert needs.context > 0
        assert needs.vision is False
        best = min(best, time.process_time() - began)
    return best


@pytest.mark.parametrize("item", COSTLY)
def test_the_work_for_a_body_is_linear(item):
    """A tenth of the size takes a tenth of the time, roughly, and no form of a body is out of
    proportion."""

    def body(size: int) -> bytes:
        return b'{"model":"m","messages":[%b0]}' % (item * (size // len(item)))

    whole, tenth = processor_time(body(SIZE)), processor_time(body(SIZE // 10))
    assert whole < 30 * tenth
    string = b'{"model":"m","messages":[{"content":"%b"}]}' % (b"x" * SIZE)
    assert whole < 20 * processor_time(string)


@pytest.mark.parametrize(
    "form", [b'{"model":"m","messages":[%b{}]}', b'{"model":"m","messages":[{"content":[%b{}]}]}']
)
def test_ten_million_empty_objects_cost_no_more_than_six_texts_of_their_size(form):
    size = 31 * 1024 * 1024
    string = b'{"model":"m","messages":[{"content":"%b"}]}' % (b"x" * size)
    assert processor_time(form % (b"{}," * (size // 3))) <= 6 * processor_time(string)
