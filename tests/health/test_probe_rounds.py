"""Rounds of probes while the fleet changes."""

from nexus.config import BackendConfig, Config
from nexus.config.overlay import Overlay
from nexus.health.fleet import Fleet
from nexus.health.probe_rounds import ProbeRounds


def fleet(*names: str) -> Fleet:
    backends = [BackendConfig(name=name, url="http://127.0.0.1:9") for name in names]
    return Fleet(Overlay(file=Config(backends=backends)), now=0.0, before=None)


def rounds_ended(before: Fleet, after: Fleet) -> int:
    """How many rounds count, if the fleet changes at the first result."""
    ended: list[bool] = []
    rounds = ProbeRounds(
        {},
        on_result=lambda *_: rounds.follow(after),
        on_details=lambda *_: None,
        on_dialects=lambda *_: None,
        on_round=lambda: ended.append(True),
    )
    rounds.follow(before)
    rounds.round()
    return len(ended)


def test_a_round_counts_if_all_backends_that_are_there_now_were_probed():
    assert rounds_ended(fleet("a", "b"), fleet("a", "b")) == 1
    assert rounds_ended(fleet("a", "b"), fleet("b")) == 1
    assert rounds_ended(fleet("a"), fleet("a", "b")) == 0
