"""What a log line looks like to a person, to a machine, and to the journal."""

import contextlib
import io
import json
import logging
import re
import sys
from pathlib import Path

import pytest

from nexus.runtime.log import COMPONENTS, configure, fatal, goes_to_journal, info, make_formatter

SOURCE = Path(__file__).parent.parent.parent / "nexus"


@pytest.fixture
def connect(tmp_path, monkeypatch):
    """Called in the test, since pytest sets standard error anew before it: leads it into a file,
    which it gives; as systemd connects it, the environment names the first one by device and
    inode."""
    with contextlib.ExitStack() as streams:

        def connect(name: str = "journal") -> Path:
            file = tmp_path / name
            stream = streams.enter_context(file.open("w", buffering=1))
            monkeypatch.setattr(sys, "stderr", stream)
            if name == "journal":
                monkeypatch.setenv("JOURNAL_STREAM", f"{file.stat().st_dev}:{file.stat().st_ino}")
            return file

        yield connect


def record(level: int, event: str, **fields) -> logging.LogRecord:
    made = logging.LogRecord("nexus.health", level, __file__, 1, event, None, None)
    vars(made).update(fields)
    return made


@pytest.mark.parametrize(
    ("level", "priority"),
    [(logging.DEBUG, 7), (logging.INFO, 6), (logging.WARNING, 4), (logging.ERROR, 3)],
)
def test_lines_for_the_journal_have_its_priority(connect, level, priority):
    connect()
    line = make_formatter("pretty").format(record(level, "backend added", backend="a b"))
    assert line == f'<{priority}>health: backend added backend="a b"'
    line = make_formatter("json").format(record(level, "backend added"))
    assert line.startswith(f"<{priority}>{{")
    assert json.loads(line[3:])["event"] == "backend added"


def test_each_line_of_a_trace_has_the_priority(connect):
    connect()
    made = record(logging.ERROR, "failed")
    try:
        raise ValueError("why")
    except ValueError:
        made.exc_info = sys.exc_info()
    lines = make_formatter("pretty").format(made).splitlines()
    assert len(lines) > 3
    assert all(line.startswith("<3>") for line in lines)


def test_a_file_that_standard_error_was_led_to_is_not_the_journal(connect):
    connect()
    assert goes_to_journal()
    connect("file")
    assert not goes_to_journal()
    assert make_formatter("json").format(record(logging.INFO, "x")).startswith("{")
    assert " info  health: x" in make_formatter("pretty").format(record(logging.INFO, "x"))


def test_a_complaint_is_an_error(connect):
    file = connect()
    fatal("One.\nTwo.")
    assert file.read_text() == "<3>One.\n<3>Two.\n"


def test_a_complaint_to_a_person_is_as_it_is(monkeypatch, capsys):
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    fatal("One.")
    assert capsys.readouterr().err == "One.\n"


@pytest.fixture
def lines(monkeypatch):
    """Configures the log of the kind that it is called with, and returns what is written."""
    root = logging.getLogger("nexus")
    before = root.handlers[:], root.propagate, root.level

    def start(kind: str) -> io.StringIO:
        monkeypatch.setattr(sys, "stderr", io.StringIO())
        configure(level="info", kind=kind)
        return sys.stderr

    yield start
    root.handlers[:], root.propagate = before[:2]
    root.setLevel(before[2])


FIELDS = {
    "id": "a b", "model": 'the "best"', "backend": None, "status": 200, "took_ms": 1.5,
    "stream": False, "odd": "\ud83d", "empty": "", "why": ValueError("x = 1"), "wide": "é\u2028",
}  # fmt: skip


@pytest.mark.parametrize("kind", ["json", "pretty"])
def test_an_event_of_a_request_has_the_line_that_logging_gives_it(lines, kind):
    written, logger = lines(kind), logging.getLogger("nexus.proxy")
    logger.info("request", extra=FIELDS)
    info(logger, "request", FIELDS)
    first, second = written.getvalue().splitlines()
    time_of = slice(9, 33) if kind == "json" else slice(0, 24)
    assert first.replace(first[time_of], "") == second.replace(second[time_of], "")
    assert first[time_of][:2] == "20"
    assert "backend" not in first


def test_a_log_with_handlers_of_others_goes_through_logging(lines):
    written, logger = lines("json"), logging.getLogger("nexus.proxy")
    seen: list[logging.LogRecord] = []
    other = logging.Handler()
    other.emit = seen.append
    logging.getLogger("nexus").addHandler(other)
    info(logger, "request", {"status": 200})
    assert json.loads(written.getvalue())["status"] == 200
    assert [record.getMessage() for record in seen] == ["request"]


def test_a_log_that_cannot_be_written_fails_no_request(lines):
    lines("json").close()
    info(logging.getLogger("nexus.proxy"), "request", {"status": 200})
    assert sys.stderr.closed


def test_components_are_the_parts_and_the_loggers():
    parts = {path.stem for path in SOURCE.iterdir() if path.name.isidentifier()}
    loggers = {
        name
        for path in SOURCE.rglob("*.py")
        for name in re.findall(r'getLogger\("nexus\.(\w+)"', path.read_text())
    }
    assert set(COMPONENTS) == parts - {"__pycache__"} | loggers


def test_a_level_of_a_component_that_is_left_out_later_ends(lines):
    lines("json")
    health = logging.getLogger("nexus.health")
    configure(level="info", kind="json", component_levels={"health": "error"})
    assert not health.isEnabledFor(logging.INFO)
    configure(level="info", kind="json")
    assert health.isEnabledFor(logging.INFO)
