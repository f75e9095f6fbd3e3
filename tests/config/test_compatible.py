"""Configurations that were written for an earlier gateway: what each key comes to here."""

import pytest

from nexus.config import ConfigError, load
from nexus.config.routing_records import Weights
from nexus.fleet.records import Backend, Model
from nexus.routing.candidate import Candidate
from nexus.routing.context import Conditions
from nexus.routing.policies import Policies
from nexus.routing.strategies import score

BACKEND = '[[backends]]\nname = "b"\nurl = "http://h:1"\n'

ACCEPTED = [
    (BACKEND + 'zone = "Restricted"', lambda c: c.backends[0].zone, "restricted"),
    (BACKEND + 'zone = "Open"', lambda c: c.backends[0].zone, "open"),
    (BACKEND + 'type = "Ollama"', lambda c: c.backends[0].type, "ollama"),
    (BACKEND + "priority = 101", lambda c: c.backends[0].priority, 101),
    (BACKEND + "priority = -1", lambda c: c.backends[0].priority, -1),
    (BACKEND + "priority = 1000", lambda c: c.backends[0].priority, 1000),
    ('[routing]\nstrategy = "Smart"', lambda c: c.routing.strategy, "smart"),
    (
        '[[routing.policies]]\nprivacy = "Restricted"',
        lambda c: c.routing.policies[0].privacy,
        "restricted",
    ),
    (
        "[[routing.policies]]\nfallback_allowed = false",
        lambda c: c.routing.policies[0].fallback_allowed,
        False,
    ),
    ("[queue]\nmax_size = 0", lambda c: c.queue.max_waiting, 0),
    ("[queue]\nmax_queue_size = 7", lambda c: c.queue.max_waiting, 7),
    ("[queue]\nmax_queue_size = 7\nenabled = false", lambda c: c.queue.max_waiting, 0),
    ('[queue]\npriority_header = "x-nexus-priority"', lambda c: c.queue.max_waiting, 100),
    ('[logging]\nlevel = "INFO"', lambda c: c.logging.level, "info"),
    (
        '[logging]\nlevel = "Warn"\nformat = "JSON"',
        lambda c: (c.logging.level, c.logging.format),
        ("warn", "json"),
    ),
    (
        '[logging]\nlevel = "info,nexus::routing=DEBUG"',
        lambda c: (c.logging.level, c.logging.component_levels),
        ("info", {"routing": "debug"}),
    ),
    ('[logging]\nlevel = "nexus=debug"', lambda c: c.logging.level, "debug"),
    (
        '[logging]\nlevel = "warn,nexus::health::checker=trace"\n[logging.component_levels]\n'
        'proxy = "Debug"',
        lambda c: (c.logging.level, c.logging.component_levels),
        ("warn", {"health": "trace", "proxy": "debug"}),
    ),
    ("[discovery]\nenabled = false", lambda c: c.discovery.enabled, False),
]


def taken(tmp_path, text, **environ):
    file = tmp_path / "nexus.toml"
    file.write_text(text)
    return load(file, environ=environ)


@pytest.mark.parametrize(("text", "setting", "value"), ACCEPTED)
def test_it_is_accepted_without_a_warning(tmp_path, text, setting, value):
    loaded = taken(tmp_path, text)
    assert setting(loaded.config) == value
    assert loaded.warnings == []


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("[quality]\nenabled = true", "quality.enabled"),
        ('[quality]\nwindow_1h = "1h"', "quality.window_1h"),
        ("[quality]\nwindow_24h = 86400", "quality.window_24h"),
        ("[quality]\nupdate_interval = 30", "quality.update_interval"),
        ('[queue]\npriority_header = "X-Priority"', "queue.priority_header"),
        (
            "[[routing.policies]]\nmax_cost_per_request = 0.5",
            "routing.policies.max_cost_per_request",
        ),
        (
            "[routing.policies.default]\nmax_cost_per_request = 0.5",
            "routing.policies.max_cost_per_request",
        ),
        ("[discovery]\nenabled = true", "discovery"),
    ],
)
def test_what_has_no_effect_is_accepted_with_one_warning(tmp_path, text, key):
    [warning] = taken(tmp_path, text).warnings
    assert f"[{key}]" in warning


def test_a_level_for_what_is_no_part_of_nexus_is_a_warning(tmp_path):
    loaded = taken(tmp_path, '[logging]\nlevel = "debug,hyper=warn,tower::buffer=error"')
    assert (loaded.config.logging.level, loaded.config.logging.component_levels) == ("debug", {})
    [warning] = loaded.warnings
    assert "hyper, tower::buffer" in warning


@pytest.mark.parametrize(
    "text",
    ['level = "info,nexus::helth=debug"', 'level = "info"\ncomponent_levels = { helth = "debug" }'],
)
def test_a_level_for_a_misspelt_component_is_a_warning(tmp_path, text):
    [warning] = taken(tmp_path, f"[logging]\n{text}").warnings
    assert warning.endswith(
        '[logging] has a level for "helth", which is no component; did you mean health?'
    )


def test_directives_of_the_environment_go_before_the_file(tmp_path):
    text = '[logging]\nlevel = "error,nexus::proxy=error,nexus::health=warn"'
    settings = taken(tmp_path, text, NEXUS_LOG_LEVEL="info,nexus::proxy=debug").config.logging
    assert (settings.level, settings.component_levels) == (
        "info",
        {"proxy": "debug", "health": "warn"},
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "[routing.aliases]\na = 'b'\nb = 'c'\nc = 'd'\nd = 'e'",
            '[routing.aliases] "a" does not end within 3 steps; point it at a model.',
        ),
        (
            "[routing.fallbacks]\nm = ['m', 'n']",
            '[routing.fallbacks] "m" falls back to itself; name other models.',
        ),
        (
            BACKEND + BACKEND,
            '[backends[1]] name = "b" is used twice; each backend needs a name of its own.',
        ),
        ("[[traffic_policies]]\nprivacy = 'restricted'", "known are "),
        ("[logging]\nlevel = 'info,nexus::proxy=loud'", "component_levels"),
    ],
)
def test_what_would_not_hold_is_refused_and_the_difference_reported(tmp_path, text, sentence):
    with pytest.raises(ConfigError) as refused:
        taken(tmp_path, text)
    assert sentence in refused.value.problems[0]
    assert len(refused.value.problems) == 1


def test_a_key_that_is_not_set_is_a_warning_until_it_is(tmp_path):
    text = BACKEND + 'api_key_env = "SOME_KEY"'
    [warning] = taken(tmp_path, text).warnings
    assert "backend b gets no key: api_key_env names SOME_KEY" in warning
    assert taken(tmp_path, text, SOME_KEY="sk-1").warnings == []


@pytest.mark.parametrize(
    ("priority", "counts_as"), [(-7, 0), (0, 0), (50, 50), (100, 100), (102, 100)]
)
def test_the_score_takes_a_priority_outside_its_range_as_the_nearer_end(
    tmp_path, priority, counts_as
):
    def of(number):
        config = taken(tmp_path, BACKEND + f"priority = {number}").config.backends[0]
        candidate = Candidate(Backend(config=config, label="b", column=0), Model(name="m"))
        return score(candidate, Weights(), Conditions(load=lambda _: 0))

    assert of(priority) == of(counts_as)


def test_a_policy_without_fallback_holds_for_its_models_alone(tmp_path):
    text = '[[routing.policies]]\nmodel_pattern = "big-*"\nfallback_allowed = false'
    policies = Policies(taken(tmp_path, text).config.routing.policies)
    assert policies.constraints("alias", "big-1").own_model
    assert not policies.constraints("small").own_model
