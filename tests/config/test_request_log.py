"""What `[request_log]` takes."""

import pytest

from nexus.config.checking import ConfigError
from nexus.config.loading import load


def loaded(tmp_path, text: str):
    file = tmp_path / "nexus.toml"
    file.write_text(f"[request_log]\n{text}\n")
    return load(file, environ={}).config.request_log


@pytest.mark.parametrize("path", ["", "journal", "/var/log/nexus/requests.jsonl"])
def test_a_path_that_is_absolute_or_the_journal(tmp_path, path):
    assert loaded(tmp_path, f'path = "{path}"').path == path


def test_a_relative_path_is_refused(tmp_path):
    with pytest.raises(ConfigError) as refused:
        loaded(tmp_path, 'path = "requests.jsonl"')
    assert "takes an absolute path" in refused.value.problems[0]


@pytest.mark.parametrize("text", ["rotate_bytes = 0", "rotate_hours = -1", "keep_files = -1"])
def test_values_out_of_range_are_refused(tmp_path, text):
    with pytest.raises(ConfigError):
        loaded(tmp_path, text)
