"""A file of lines that several processes append to and rotate."""

import contextlib
import multiprocessing
import os
import resource
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from nexus.runtime.line_file import LineFile

DAY_S = 86_400.0
MORNING = 20_000 * DAY_S + 9 * 3600


class Clock:
    def __init__(self) -> None:
        self.now = MORNING

    def __call__(self) -> float:
        return self.now


def line_file(path: Path, clock: Clock, **settings) -> LineFile:
    return LineFile(
        path, **{"max_bytes": 1 << 20, "max_age_s": DAY_S, "keep": 30, **settings}, clock=clock
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "requests.jsonl"


def rotated(path: Path) -> list[Path]:
    return sorted(one for one in path.parent.iterdir() if one != path)


@contextlib.contextmanager
def most_bytes(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size`: a write is cut short there, as on a full
    disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_new_file_is_private_and_an_old_one_is_continued(path):
    file = line_file(path, Clock())
    file.write(b"one\n")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    file.close()
    path.chmod(0o640)
    os.utime(path, (MORNING, MORNING))
    line_file(path, Clock()).write(b"two\n")
    assert path.read_bytes() == b"one\ntwo\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert rotated(path) == []


def test_it_is_rotated_by_size(path):
    file = line_file(path, Clock(), max_bytes=10)
    for number in range(6):
        file.write(b"line %d\n" % number)
    first, second = rotated(path)
    assert first.name == "requests.jsonl.20241004T090000Z"
    assert second.name == "requests.jsonl.20241004T090000Z-001"
    assert first.read_bytes() == b"line 0\nline 1\n"
    assert second.read_bytes() == b"line 2\nline 3\n"
    assert path.read_bytes() == b"line 4\nline 5\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_it_is_rotated_at_midnight_by_the_first_line_after_it(path):
    clock = Clock()
    file, other = line_file(path, clock), line_file(path, clock)
    file.write(b"today\n")
    other.write(b"today\n")
    clock.now += 16 * 3600
    other.write(b"tomorrow\n")
    file.write(b"tomorrow\n")
    [old] = rotated(path)
    assert old.read_bytes() == b"today\n" * 2
    assert path.read_bytes() == b"tomorrow\n" * 2


def test_a_file_that_was_last_written_yesterday_is_rotated_after_a_restart(path):
    path.write_bytes(b"old\n")
    os.utime(path, (MORNING - DAY_S, MORNING - DAY_S))
    line_file(path, Clock()).write(b"new\n")
    assert [one.read_bytes() for one in rotated(path)] == [b"old\n"]
    assert path.read_bytes() == b"new\n"


def test_without_an_age_it_is_rotated_by_size_only(path):
    clock = Clock()
    file = line_file(path, clock, max_age_s=0)
    for _ in range(3):
        file.write(b"x\n")
        clock.now += 400 * DAY_S
    assert rotated(path) == []


def test_the_oldest_files_are_deleted_and_no_others(path):
    other = path.with_name("requests.jsonl.bak")
    other.write_bytes(b"")
    clock = Clock()
    file = line_file(path, clock, max_bytes=1, keep=2)
    for _ in range(5):
        file.write(b"x\n")
        clock.now += 1
    names = [one.name for one in rotated(path)]
    assert names == [
        "requests.jsonl.20241004T090003Z", "requests.jsonl.20241004T090004Z", other.name,
    ]  # fmt: skip


def test_a_file_that_another_program_renamed_is_left_within_a_second(path):
    clock = Clock()
    file = line_file(path, clock)
    file.write(b"one\n")
    path.rename(path.with_suffix(".1"))
    file.write(b"two\n")
    clock.now += 1
    file.write(b"three\n")
    assert path.with_suffix(".1").read_bytes() == b"one\ntwo\n"
    assert path.read_bytes() == b"three\n"


def test_a_line_that_does_not_fit_leaves_no_part_behind(path):
    file, other = line_file(path, Clock()), line_file(path, Clock())
    file.write(b"one\n")
    with most_bytes(8):
        with pytest.raises(OSError, match="No space left"):
            file.write(b"a longer line\n")
        with pytest.raises(OSError, match="No space left"):
            other.write(b"another long line\n")
    other.write(b"two\n")
    file.write(b"three\n")
    assert path.read_bytes() == b"one\ntwo\nthree\n"


def test_a_rotation_that_fails_loses_no_line_and_is_logged_once_a_minute(path, caplog):
    clock = Clock()
    file = line_file(path, clock, max_bytes=4)
    file.write(b"one\n")
    path.with_name("requests.jsonl.20241004T090000Z").mkdir()
    file._free_name = lambda _: path.with_name("requests.jsonl.20241004T090000Z")
    for _ in range(3):
        file.write(b"more\n")
    del file._free_name
    assert path.read_bytes() == b"one\nmore\nmore\nmore\n"
    assert [record.message for record in caplog.records] == ["a file cannot be rotated"]
    clock.now += 61
    file.write(b"new\n")
    assert path.read_bytes() == b"new\n"


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_only_a_regular_file_is_written(path, make):
    make(path)
    with pytest.raises(OSError, match=r"not a regular file|Is a directory|No such device"):
        line_file(path, Clock()).write(b"x\n")


def test_a_missing_directory_is_an_error_until_it_is_made(path):
    file = line_file(path.parent / "logs" / path.name, Clock())
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            file.write(b"x\n")
    (path.parent / "logs").mkdir()
    file.write(b"x\n")


def write_many(path: Path, name: int, count: int) -> None:
    file = LineFile(path, max_bytes=5000, max_age_s=0, keep=1000)
    for number in range(count):
        file.write(b"%d %d %s\n" % (name, number, b"x" * (number % 300)))


def test_the_lines_of_processes_that_rotate_are_all_there_and_whole(path):
    processes = [
        multiprocessing.get_context("fork").Process(target=write_many, args=(path, name, 500))
        for name in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    files = [*rotated(path), path]
    assert len(files) > 5
    lines = b"".join(file.read_bytes() for file in files).decode().splitlines()
    expected = Counter(f"{name} {n} {'x' * (n % 300)}" for name in range(4) for n in range(500))
    assert Counter(lines) == expected
