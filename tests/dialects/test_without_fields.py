"""Bodies without some of their fields."""

import pytest

from nexus.dialects.json_body import without_fields


@pytest.mark.parametrize(
    ("body", "left"),
    [
        (b'{"a": 1, "drop": {"x": "}"}, "b": [2.0]}', b'{"a": 1,"b": [2.0]}'),
        (b' {"drop":1}\n', b"{}"),
        (b'{"drop":1,"a":"\\u00e9","drop":2}', b'{"a":"\\u00e9"}'),
        (b'{"dr\\u006fp":1,"a":2}', b'{"a":2}'),
        (b'\xef\xbb\xbf{"a":NaN,"drop":1,"b":"\\ud83d"}', b'{"a":NaN,"b":"\\ud83d"}'),
        (b' { "a" : 1 } ', b' { "a" : 1 } '),
        (b"[1]", b"[1]"),
        (b"what?", b"what?"),
    ],
)
def test_the_others_keep_their_bytes(body, left):
    assert without_fields(body, ["drop", "other"]) == left
