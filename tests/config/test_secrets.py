"""Where a secret is looked for."""

import pytest

from nexus.config import ConfigError, load
from nexus.config.secrets import SecretError, displayable_name, secret
from nexus.runtime.text import redact


@pytest.fixture
def credentials(tmp_path):
    (tmp_path / "FROM_FILE").write_text("of-the-file\n")
    (tmp_path / "BOTH").write_text("of-the-file\n")
    (tmp_path / "EMPTY").write_text("\n")
    (tmp_path / "BINARY").write_bytes(b"\xff\xfe")
    return {"CREDENTIALS_DIRECTORY": str(tmp_path), "BOTH": "of-the-environment", "BLANK": ""}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FROM_FILE", "of-the-file"),
        ("BOTH", "of-the-environment"),
        ("EMPTY", None),
        ("BINARY", None),
        ("BLANK", None),
        ("NOWHERE", None),
        ("../secret", None),
        (None, None),
    ],
)
def test_environment_first_then_credentials(credentials, name, value):
    assert secret(name, credentials) == value


def test_without_credentials():
    assert secret("FROM_FILE", {}) is None


@pytest.mark.parametrize("ending", ["\n", "\r\n", " ", "\t\n"])
def test_white_space_around_a_secret_is_not_part_of_it(ending):
    assert secret("KEY", {"KEY": f"sk-strip-me{ending}"}) == "sk-strip-me"


@pytest.mark.parametrize(
    "value",
    ["sk-two\nlines-of-it", "sk-with-\u201cquotes\u201d", "sk-\x00zero-byte", "sk-k\u00e9y-latin"],
)
def test_what_no_header_can_carry_is_refused_unshown(tmp_path, value):
    with pytest.raises(
        SecretError, match=r"^The value of \$KEY has a character that no header can carry"
    ) as refused:
        secret("KEY", {"KEY": value})
    assert "sk-" not in str(refused.value)
    assert "lines-of-it" not in redact(f"Invalid header value {value!r}")
    file = tmp_path / "nexus.toml"
    file.write_text('[[backends]]\nname = "b"\nurl = "http://h"\napi_key_env = "KEY"\n')
    with pytest.raises(
        ConfigError, match=r"backend b: The value of \$KEY has a character"
    ) as refused:
        load(file, environ={"KEY": value})
    assert "sk-" not in str(refused.value)
    with pytest.raises(
        ConfigError, match=r"\[admin\] token_env: The value of \$NEXUS_ADMIN_TOKEN has"
    ):
        load(file, environ={"NEXUS_ADMIN_TOKEN": value})


@pytest.mark.parametrize(("token", "warned"), [("x" * 15, True), ("x" * 16, False), ("", False)])
def test_a_token_that_can_be_guessed_is_warned_of(tmp_path, token, warned):
    file = tmp_path / "nexus.toml"
    file.write_text("")
    warnings = load(file, environ={"NEXUS_ADMIN_TOKEN": token}).warnings
    assert ["NEXUS_ADMIN_TOKEN can be guessed" in warning for warning in warnings] == [
        True
    ] * warned


def test_a_secret_is_masked_however_it_is_quoted():
    value = secret("KEY", {"KEY": """sk-'quote"back\\slash"""})
    for text in (value, repr(value), f"b{value!r}", '{"k": "sk-\'quote\\"back\\\\slash"}'):
        assert "slash" not in redact(text)
    assert redact("nothing of it") == "nothing of it"


@pytest.mark.parametrize("key", ["sk-" + "abcdef0123456789" * 6, "hf_abcdefGHIJKL01234567"])
def test_a_key_instead_of_its_name_is_not_shown(tmp_path, key):
    for name in ("RACK_1_KEY", "rack-1.key", "VENDOR_OF_MODELS_2_API_KEY"):
        assert displayable_name(name) == name
    file = tmp_path / "nexus.toml"
    file.write_text(f'[[backends]]\nname = "b"\nurl = "http://h"\napi_key_env = "{key}"\n')
    [warning] = load(file, environ={}).warnings
    assert "abcdef" not in warning
    assert "api_key_env names ***" in warning
