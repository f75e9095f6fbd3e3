"""Forms: what is kept of them, however they are cut into pieces."""

import pytest

from nexus.dialects.form_reader import FormField, FormReader, MalformedForm

TYPE = "multipart/form-data; boundary=bound"
NAMES = frozenset({"model", "stream"})


def part(name: str, value: bytes, more: str = "") -> bytes:
    head = f'--bound\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'
    return head.encode() + value + b"\r\n"


FILE = part("file", b"\r\n--boun\r\n\0" * 20, '; filename="model"\r\nContent-Type: audio/wav')
FORM = (
    b"preamble\r\n" + FILE + part("model", b"whisper-\xc3\xa9") + part("other", b"x" * 3000)
    + part("stream", b"true") + b"--bound--\r\nepilogue"
)  # fmt: skip


def read(data: bytes, size: int, content_type: str = TYPE) -> dict[str, FormField]:
    reader = FormReader(content_type, NAMES)
    for at in range(0, len(data), size):
        reader.feed(data[at : at + size])
    reader.end()
    return reader.fields


@pytest.mark.parametrize("size", [*range(1, 70), len(FORM)])
def test_every_cut_gives_the_same(size):
    fields = read(FORM, size)
    assert {name: field.value for name, field in fields.items()} == {
        "model": "whisper-é",
        "stream": "true",
    }
    for field in fields.values():
        assert FORM[field.start : field.end].decode() == field.value


@pytest.mark.parametrize(
    "content_type",
    [
        'multipart/form-data; boundary="bound"',
        "multipart/form-data;charset=utf-8;boundary=bound",
        "multipart/form-data; BOUNDARY=bound; x=y",
    ],
)
def test_boundaries(content_type):
    assert read(FORM, 100, content_type)["model"].value == "whisper-é"


@pytest.mark.parametrize(
    "form",
    [
        part("model", b"m") + b"--bound  \r\n\r\nno headers\r\n--bound--",
        b"--bound\r\ncontent-disposition:form-data;name=model\r\n\r\nm\r\n--bound--",
        b'--bound\r\nX: y\r\nContent-Disposition: form-data; x="name"; name="model"\r\n\r\nm\r\n'
        b"--bound--",
    ],
)
def test_forms_that_are_written_otherwise(form):
    for size in (1, 3, len(form)):
        assert read(form, size)["model"].value == "m"


def test_a_file_is_no_field():
    assert read(part("model", b"m", '; filename="a"') + b"--bound--", 10) == {}


@pytest.mark.parametrize(
    ("form", "words"),
    [
        (FORM[:-20], "last boundary"),
        (b"", "last boundary"),
        (b"no form at all", "last boundary"),
        (part("model", b"a") + part("model", b"b") + b"--bound--", "twice"),
        (part("model", b"a" * 2000) + b"--bound--", "too long"),
        (b"--bound\r\n" + b"x" * 20_000, "headers"),
        (b"--boundary\r\n\r\n--boundary--", "other characters"),
        (b"--bound\r\n\r\n\r\n" * 1001 + b"--bound--", "1000 parts"),
    ],
)
def test_malformed(form, words):
    for size in (7, max(1, len(form))):
        with pytest.raises(MalformedForm, match=words):
            read(form, size)


def test_without_a_boundary():
    with pytest.raises(MalformedForm, match="boundary"):
        FormReader("multipart/form-data", NAMES)
