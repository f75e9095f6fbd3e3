"""Streams of chat completions for the tests of translations from them."""

import json
from typing import Any

from hypothesis import strategies as st

NO_CHAT = {"completions", "llamacpp-b11549-completions"}
"""Recordings of text completions, which no message becomes."""


def chunks(*deltas: dict[str, Any], finish: str = "stop", **last: Any) -> bytes:
    """A stream with these deltas, a finish, and the mark of the end."""
    events = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": finish, **last}]})
    return (
        b"".join([b"data: %b\n\n" % json.dumps(e).encode() for e in events]) + b"data: [DONE]\n\n"
    )


def calls(*pieces: dict[str, Any]) -> dict[str, Any]:
    return {"tool_calls": list(pieces)}


def piece(index: int, arguments: str, name: str = "", call_id: str = "") -> dict[str, Any]:
    function = {"arguments": arguments} | ({"name": name} if name else {})
    return {"index": index, "function": function} | ({"id": call_id} if call_id else {})


DELTAS = st.lists(
    st.one_of(
        st.builds(lambda text: {"content": text}, st.text(max_size=5)),
        st.builds(lambda text: {"reasoning": text}, st.text(max_size=5)),
        st.builds(
            lambda index, value: calls(piece(index, value, f"t{index}", f"c{index}")),
            st.integers(0, 3),
            st.sampled_from(["", "{", "}", '{"a":1}', '"b":', " "]),
        ),
    ),
    max_size=12,
)
