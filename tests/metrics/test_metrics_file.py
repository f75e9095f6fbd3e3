"""Metrics files: a reader never sees one without its space."""

import errno
import os

import pytest

from nexus.metrics.directory_reader import DirectoryReader
from nexus.metrics.metrics_file import ReservedFile


def test_a_new_file_gets_its_name_once_it_has_its_space(tmp_path, monkeypatch):
    """Else a reader on a busy host sets it aside, and what its process counts is lost."""
    reader, reserve = DirectoryReader(tmp_path), os.posix_fallocate

    def read_first(fd: int, *arguments: int) -> None:
        reader.read()
        reserve(fd, *arguments)

    monkeypatch.setattr(os, "posix_fallocate", read_first)
    path = tmp_path / "counter_0.db"
    file = ReservedFile(str(path))
    reader.read()
    assert (reader.damaged(), list(tmp_path.iterdir())) == (0, [path])
    file.close()
    reader.close()


def test_a_file_without_space_is_not_there(tmp_path, monkeypatch):
    def full(*_arguments: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    path = tmp_path / "counter_0.db"
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(OSError, match="full"):
            ReservedFile(str(path))
    assert not path.exists()
    ReservedFile(str(path)).close()
    assert path.stat().st_size > 0
