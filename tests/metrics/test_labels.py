"""Label values: sanitized, never shared, never changed."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.dialects.translation import TRANSLATIONS
from nexus.metrics.label_values import TRANSLATION_NAMES
from nexus.metrics.labels import RESERVED, assign, sanitize


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("ollama-local:11434", "ollama_local_11434"),
        ("gpt-4", "gpt_4"),
        ("123model", "_123model"),
        ("backend/prod", "backend_prod"),
        ("modèle", "mod_le"),
    ],
)
def test_sanitize(name, label):
    assert sanitize(name) == label


def test_later_name_that_collides_gets_a_suffix():
    labels = assign({}, ["gpt-4", "gpt_4"], limit=10)
    assert labels["gpt-4"] == "gpt_4"
    assert re.fullmatch(r"gpt_4_[0-9a-f]{6}", labels["gpt_4"])


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_reserved_values_are_never_given(name):
    assert re.fullmatch(rf"{name}_[0-9a-f]{{6}}", assign({}, [name], limit=10)[name])


def test_beyond_the_limit_none_is_given():
    assert assign({"a": "a"}, ["b", "c"], limit=2) == {"a": "a", "b": "b"}


names = st.lists(st.text(min_size=1, max_size=8), max_size=30)


@given(names, names)
def test_never_shared_and_never_changed(first, later):
    before = assign({}, first, limit=1000)
    after = assign(before, later, limit=1000)
    assert {name: after[name] for name in before} == before
    assert len(set(after.values())) == len(after)
    assert not RESERVED & set(after.values())
    assert all(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", label) for label in after.values())


def test_every_translation_has_a_label_value():
    assert set(TRANSLATIONS) == set(TRANSLATION_NAMES)
