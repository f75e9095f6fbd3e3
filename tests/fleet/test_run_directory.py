"""The run directory: owned by one gateway, a generation for each start."""

import os
import threading

import pytest

from nexus.fleet import run_directory
from nexus.fleet.run_directory import FORMAT, RunDirectory, RunDirectoryError, default_run_dir
from nexus.fleet.slot_lease import SlotLease


@pytest.fixture
def run_dir(tmp_path):
    return RunDirectory(tmp_path / "run")


def test_second_owner_is_refused_and_learns_who_has_it(run_dir):
    claim = run_dir.claim("the gateway with pid 7")
    assert run_dir.owner() == "the gateway with pid 7"
    with pytest.raises(RunDirectoryError, match=r"in use by the gateway with pid 7; stop that one"):
        RunDirectory(run_dir.path).claim("another")
    claim.close()
    assert run_dir.owner() is None
    RunDirectory(run_dir.path).claim("another").close()


def test_generations_are_kept_while_anyone_holds_them(run_dir):
    run_dir.prepare()
    first = run_dir.new_generation()
    slot_lease = SlotLease.lease(first)
    second = run_dir.new_generation()
    assert run_dir.current().name == second.name
    assert {g.name for g in run_dir.generations()} == {first.name, second.name}
    slot_lease.release()
    third = run_dir.new_generation()
    assert {g.name for g in run_dir.generations()} == {third.name}


def test_started_is_the_generations(run_dir):
    run_dir.prepare()
    assert run_dir.current() is None
    generation = run_dir.new_generation()
    assert run_dir.current().started() == generation.started()


def test_directory_that_cannot_be_used(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        RunDirectoryError, match=r"cannot be used .* name one that this user may write"
    ):
        RunDirectory(tmp_path / "file" / "run").prepare()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a directory of another user's")
def test_directory_of_another_user(run_dir):
    run_dir.prepare()
    os.chown(run_dir.path, 12345, 12345)
    with pytest.raises(RunDirectoryError, match=r"belongs to another user \(uid 12345\)"):
        run_dir.prepare()


def test_older_format_is_not_read(run_dir):
    run_dir.prepare()
    old = run_dir.new_generation()
    (run_dir.path / "format").write_text("0")
    (run_dir.path / "fleet.json").write_text("{}")
    run_dir.prepare()
    assert (run_dir.path / "format").read_text() == FORMAT
    assert not (run_dir.path / "fleet.json").exists()
    with run_dir.current_or_new() as generation:
        assert generation.name != old.name


def test_older_format_in_use_is_refused(run_dir):
    run_dir.prepare()
    slot_lease = SlotLease.lease(run_dir.new_generation())
    (run_dir.path / "format").write_text("0")
    with pytest.raises(RunDirectoryError, match="another version"):
        run_dir.prepare()
    slot_lease.release()


def test_default_directory(tmp_path):
    assert (
        default_run_dir(8000, {"RUNTIME_DIRECTORY": "/run/nexus:/run/more"}).as_posix()
        == "/run/nexus"
    )
    assert default_run_dir(8000, {"XDG_RUNTIME_DIR": str(tmp_path)}) == tmp_path / "nexus-8000"
    assert default_run_dir(8001, {}).name == f"nexus-{os.geteuid()}-8001"


def test_a_gateway_that_starts_does_not_delete_what_is_about_to_be_held(tmp_path):
    """A health process that has made a generation, or found one, gets a slot in it first."""
    run_dir = RunDirectory(tmp_path / "run")
    run_dir.prepare()
    starts = threading.Thread(target=run_dir.new_generation)
    with run_dir.current_or_new() as joined:
        starts.start()
        starts.join(0.3)
        assert starts.is_alive()
        lease = SlotLease.lease(joined)
    starts.join()
    assert joined.path.is_dir()
    current = run_dir.current()
    assert current is not None
    assert {one.name for one in run_dir.generations()} == {joined.name, current.name}
    assert current.name != joined.name
    lease.release()


def test_a_health_process_that_starts_joins_the_gateways_generation(tmp_path):
    run_dir = RunDirectory(tmp_path / "run")
    run_dir.prepare()
    made = run_dir.new_generation()
    with run_dir.current_or_new() as joined:
        assert joined.name == made.name
    assert [one.name for one in run_dir.generations()] == [made.name]


def test_a_process_that_was_stopped_while_it_started_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(run_directory, "_LONGEST_START_S", 0.05)
    run_dir = RunDirectory(tmp_path / "run")
    run_dir.prepare()
    with run_dir.current_or_new():
        assert run_dir.new_generation().path.is_dir()
