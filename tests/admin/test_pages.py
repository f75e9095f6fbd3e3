"""What the templates of all pages have in common."""

from nexus.admin.pages import _environment


def test_names_cannot_turn_or_break_what_a_page_shows():
    template = _environment().from_string(
        "{% macro cell(text) %}<td>{{ text }}</td>{% endmacro %}{{ cell(name) }}"
    )
    shown = template.render(name="<b>\u202e\x00\x9b\u2028\n\u00e9")
    assert shown == r"<td>&lt;b&gt;\u202e\u0000\u009b\u2028" + "\n\u00e9</td>"
