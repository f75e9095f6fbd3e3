"""What is masked and escaped in text."""

import json

import pytest

from nexus.runtime.text import mask_key, mask_quotes


def test_own_key_is_masked_in_both_of_its_spellings():
    assert mask_key(b'{"m":"sk-a/b and sk-a\\/b"}', "sk-a/b") == b'{"m":"*** and ***"}'
    assert mask_key(b"nothing", None) == b"nothing"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cannot read 'the secret plan of the year' here", "cannot read '***' here"),
        ("the secret plan of", "***"),
        ("no plan is a secret", "no plan is a secret"),
        ("a line\nanother line", "***"),
        ('says "yes" and is übersetzt', "***"),
        ("model 'meta-llama/Llama-3.1-70B' is not there", None),
        ("", None),
        ("CUDA out of memory", None),
    ],
)
def test_what_a_message_quotes_of_a_request_is_masked(text, shown):
    content = 'the secret plan of the year; a line\nanother line; says "yes" and is übersetzt'
    body = {"model": "meta-llama/Llama-3.1-70B", "messages": [{"content": content}]}
    for ascii_only in (True, False):
        source = json.dumps(body, ensure_ascii=ascii_only).encode()
        found = mask_quotes(text, source, keep="meta-llama/Llama-3.1-70B")
        assert found == (text if shown is None else shown)


def test_a_long_quote_takes_few_looks_at_the_source():
    class Source(bytes):
        looks = 0

        def __contains__(self, piece) -> bool:
            self.looks += 1
            return super().__contains__(piece)

    quote = "".join(f"{n:03}," for n in range(70))
    source = Source(b'{"content":"%b and more"}' % quote.encode())
    assert mask_quotes(f"it says {quote}!", source) == "it says ***!"
    assert source.looks < 50
