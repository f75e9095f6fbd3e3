"""The directory of what outlives a restart: nothing in it is believed that others could write."""

import os

import msgspec
import pytest

from nexus.config import Config, ConfigError
from nexus.config.access_records import Key
from nexus.fleet import locks
from nexus.fleet.locks import LockFile
from nexus.fleet.state_directory import StateDirectory
from nexus.health.change_files import ChangeFiles

STRANGER = 4242
KEY, OTHER, THIRD = (
    Key(id=id_, sha256=[digit * 64])
    for id_, digit in (("planted", "0"), ("two", "1"), ("three", "2"))
)


def changes(path):
    return ChangeFiles(None, {}, session_dir=path, state_dir=StateDirectory(path))


@pytest.fixture
def state(tmp_path):
    path = tmp_path / "state"
    path.mkdir(mode=0o700)
    (path / "keys.json").write_bytes(msgspec.json.encode({"keys": [KEY]}))
    return path


def test_it_is_made_for_its_owner_alone(tmp_path):
    path = tmp_path / "deep" / "state"
    directory = StateDirectory(path)
    assert directory.read("a") is None
    directory.write("a", b"x")
    assert (directory.read("a"), path.stat().st_mode & 0o777) == (b"x", 0o700)
    assert (path / "a").stat().st_mode & 0o777 == 0o600
    directory.close()


def test_keys_are_read_from_a_directory_of_ours(state):
    assert [key.id for key in changes(state).overlay(Config()).keys] == ["planted"]
    (state.parent / "link").symlink_to(state)
    assert [key.id for key in changes(state.parent / "link").overlay(Config()).keys] == ["planted"]


def test_an_empty_file_is_damage_and_not_no_keys(state):
    (state / "keys.json").write_bytes(b"")
    with pytest.raises(ConfigError, match="the keys cannot be read"):
        changes(state).overlay(Config())


def test_keys_that_another_gateway_made_meanwhile_are_not_lost(state):
    """As in a restart that overlaps: one gateway makes a key, another has read the file before."""
    late = changes(state)
    read = late.overlay(Config())
    (state / "keys.json").write_bytes(msgspec.json.encode({"keys": [KEY, OTHER]}))
    with pytest.raises(
        ConfigError, match="changed meanwhile, by another gateway or by hand; run `nexus rel"
    ):
        late.write(read, read.with_key(THIRD))
    again = late.overlay(Config())
    late.write(again, again.with_key(THIRD))
    assert late.overlay(Config()).keys == (KEY, OTHER, THIRD)


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_others_may_not_write_in_it(state, mode):
    state.chmod(mode)
    with pytest.raises(ConfigError, match="other users may write in the directory"):
        changes(state).overlay(Config())
    with pytest.raises(OSError, match="other users may write in the directory"):
        StateDirectory(state).write("keys.json", b"")


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a directory to another user takes root")
def test_it_may_not_belong_to_another_user(state):
    os.chown(state, STRANGER, STRANGER)
    with pytest.raises(ConfigError, match=r"belongs to another user \(uid 4242\)"):
        changes(state).overlay(Config())
    with pytest.raises(OSError, match="belongs to another user"):
        StateDirectory(state).write("keys.json", b"")


def test_two_that_wait_for_another_gateway_both_get_it(tmp_path, monkeypatch):
    """The accounts and an operator's key, say."""
    state = StateDirectory(tmp_path / "state")
    state.path.mkdir(mode=0o700)
    other, claimed = LockFile(state.path / "lock"), []
    assert other.acquire(0)

    def end_the_other(_: float) -> None:
        if not claimed:
            other.close()
            claimed.append(state.claim())

    monkeypatch.setattr(locks.time, "sleep", end_the_other)
    claimed.append(state.claim())
    assert claimed == [state.path] * 2
    state.close()
