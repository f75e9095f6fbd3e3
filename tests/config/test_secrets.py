"""Where a secret is looked for."""

import pytest

from nexus.config.secrets import secret


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
