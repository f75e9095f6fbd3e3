"""Files that are replaced whole."""

import os
import stat

import pytest

from nexus.runtime.files import PRIVATE, write_atomically


def test_the_new_content_replaces_the_old_and_nothing_stays_aside(tmp_path):
    file = tmp_path / "state.json"
    for content in (b"", b"one", b"two" * 100_000):
        write_atomically(file, content)
        assert file.read_bytes() == content
    assert list(tmp_path.iterdir()) == [file]


def test_a_private_file_is_private_whatever_was_left_aside(tmp_path):
    file, aside = tmp_path / "token", tmp_path / f".token-{os.getpid()}"
    aside.write_bytes(b"left by a killed process")
    aside.chmod(0o666)
    write_atomically(file, b"secret", mode=PRIVATE)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_failure_leaves_the_old_state_and_no_file_aside(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomically(tmp_path / "taken", b"content")
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "missing" / "file", b"content")
    assert list(tmp_path.iterdir()) == [tmp_path / "taken"]
