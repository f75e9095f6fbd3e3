"""What is read of a request's body."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.routing.requirements import InvalidBody, Requirements, read, with_model


def chat(**more) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * 400}], **more}).encode()


@pytest.mark.parametrize(
    ("more", "needs"),
    [
        ({}, Requirements(context=100)),
        ({"tools": [{"type": "function"}]}, Requirements(context=100, tools=True)),
        ({"tools": []}, Requirements(context=100)),
        ({"tools": None}, Requirements(context=100)),
        ({"response_format": {"type": "json_object"}}, Requirements(context=100, json_mode=True)),
        ({"response_format": {"type": "text"}}, Requirements(context=100)),
        ({"messages": [{"content": [{"type": "image_url", "image_url": {}}]}]}, Requirements(vision=True)),
        ({"messages": [{"content": [{"type": "text", "text": '"image_url"'}]}]}, Requirements(context=3)),
        ({"messages": [{"content": None, "tool_calls": []}]}, Requirements(context=1)),
    ],
)
def test_needs(more, needs):
    assert read(chat(**more), "messages").needs == needs


def test_stream_and_model():
    ask = read(chat(stream=True), "messages")
    assert (ask.model, ask.stream) == ("m", True)
    assert read(chat(stream=None), "messages").stream is False


@given(st.binary(max_size=30))
def test_any_bytes_are_read_or_refused(body):
    """30 bytes are too few for a good request: whatever they are, they are refused with a sentence."""
    with pytest.raises(InvalidBody, match=r"\w.*"):
        read(body, "messages")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=6), values, max_size=6))
def test_with_model_changes_the_model_only(fields):
    body = json.dumps({**fields, "model": "old"}).encode()
    assert json.loads(with_model(body, "new/ü")) == {**fields, "model": "new/ü"}


def test_with_model_keeps_the_bytes_of_other_fields():
    assert (
        with_model(b'{"a": 1.50, "model": "x", "b": {"c" : [ 1]}}', "y") == b'{"a":1.50,"model":"y","b":{"c" : [ 1]}}'
    )
