"""The ids of errors for requests that reach no endpoint."""

import json

import pytest

from nexus.dialects import anthropic, openai
from nexus.proxy.own_error import own_error


@pytest.mark.parametrize(("given", "kept"), [("mine-1", True), ("a b", False), (None, False)])
def test_a_usable_id_of_the_client_is_kept(given, kept):
    for dialect, names in ((openai, 1), (anthropic, 2)):
        headers, content = own_error(dialect, "No.", status=404, code="not_found", given_id=given)
        [id_] = ids = {value for name, value in headers if name.endswith("request-id")}
        assert (len(headers), (id_ == given)) == (2 + names, kept)
        assert json.loads(content).get("request_id") in (ids if dialect is anthropic else {None})
