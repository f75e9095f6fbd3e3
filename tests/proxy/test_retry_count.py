"""Which attempts `max_retries` counts."""

from types import SimpleNamespace

import pytest

from nexus.errors import RequestFailed
from nexus.fleet.outcome import AttemptRecord
from nexus.proxy import retry


@pytest.mark.parametrize(
    ("outcomes", "may"),
    [
        (("not_translatable", "connect_failed"), True),
        (("response_not_stored", "connect_failed"), True),
        (("connect_failed", "connect_failed"), False),
    ],
)
def test_an_attempt_that_was_not_sent_is_no_retry(monkeypatch, outcomes, may):
    monkeypatch.setattr(retry, "_why", lambda *_: "")
    routing = SimpleNamespace(max_retries=1)
    snapshot = SimpleNamespace(config=SimpleNamespace(routing=routing))
    engine = SimpleNamespace(
        view=lambda: SimpleNamespace(snapshot=snapshot), clock=lambda: 0.0, may_retry=lambda: True
    )
    failed = [AttemptRecord("b", "m", outcome, 1.0) for outcome in outcomes]
    exchange = SimpleNamespace(engine=engine, failed=failed, request_id="r")
    backend = SimpleNamespace(name="b")
    choice = SimpleNamespace(backend=backend, context_length=None)
    reservation = SimpleNamespace(choice=choice, view=SimpleNamespace(address=lambda _: None))
    waiter = SimpleNamespace(deadline=1.0)
    failure = RequestFailed("connect_failed", "It is not there.")
    assert retry._may_retry(exchange, reservation, failure, waiter) is may
