"""What is masked and escaped in text."""

from nexus.runtime.text import mask_key


def test_own_key_is_masked_in_both_of_its_spellings():
    assert mask_key(b'{"m":"sk-a/b and sk-a\\/b"}', "sk-a/b") == b'{"m":"*** and ***"}'
    assert mask_key(b"nothing", None) == b"nothing"
