"""What operators change at the running gateway, over the file."""

import pytest

from nexus.config import BackendConfig, Config, ConfigError
from nexus.config.overlay import Overlay, parse_backend


def backend(name, port=1):
    return BackendConfig(name=name, url=f"http://127.0.0.1:{port}")


FILE = Overlay(file=Config(backends=[backend("a"), backend("b")]))


def names(layered):
    return {found.name: layered.origin(found.name) for found in layered.config().backends}


def after_restart(layered):
    return Overlay(file=layered.file, saved=layered.saved)


def test_adding_and_its_origin():
    layered = FILE.add(backend("c"), save=False).add(backend("d"), save=True)
    assert names(layered) == {"a": "file", "b": "file", "c": "added", "d": "saved"}
    assert names(after_restart(layered)) == {"a": "file", "b": "file", "d": "saved"}


@pytest.mark.parametrize("save", [False, True])
def test_removing_from_the_file(save):
    layered = FILE.remove("a", save=save)
    assert names(layered) == {"b": "file"}
    assert names(after_restart(layered)) == ({"b": "file"} if save else {"a": "file", "b": "file"})
    again = layered.add(backend("a", 2), save=False)
    assert names(again) == {"b": "file", "a": "added"}
    assert again.config().backends[1].url == "http://127.0.0.1:2"


def test_a_saved_backend_replaces_one_removed():
    layered = FILE.remove("a", save=False).add(backend("a", 2), save=True)
    assert names(layered) == names(after_restart(layered)) == {"b": "file", "a": "saved"}
    assert after_restart(layered).config().backends[1].url == "http://127.0.0.1:2"


def test_removing_what_was_added():
    added = FILE.add(backend("c"), save=False).add(backend("d"), save=True)
    assert names(added.remove("c", save=False)) == {"a": "file", "b": "file", "d": "saved"}
    gone = added.remove("d", save=False)
    assert "d" not in names(gone)
    assert "d" in names(after_restart(gone))
    assert "d" not in names(after_restart(added.remove("d", save=True)))


def test_a_name_in_the_file_goes_before_one_that_was_added():
    layered = FILE.add(backend("c", 2), save=True)
    moved = Overlay(file=Config(backends=[backend("c", 3)]), saved=layered.saved)
    assert [(found.name, found.url) for found in moved.config().backends] == [
        ("c", "http://127.0.0.1:3")
    ]
    assert names(moved) == {"c": "file"}


def test_draining():
    drained = FILE.drain("a", on=True, save=False)
    assert drained.is_drained("a")
    assert not drained.is_drained("b")
    assert not after_restart(drained).is_drained("a")
    saved = FILE.drain("a", on=True, save=True)
    assert after_restart(saved).is_drained("a")
    resumed = saved.drain("a", on=False, save=False)
    assert not resumed.is_drained("a")
    assert after_restart(resumed).is_drained("a")
    assert not after_restart(resumed.drain("a", on=False, save=True)).is_drained("a")
    assert not drained.remove("a", save=False).add(backend("a"), save=False).is_drained("a")


def test_what_cannot_be_added():
    with pytest.raises(ConfigError, match="not allowed; it takes an address"):
        FILE.add(BackendConfig(name="c", url="ftp://x"), save=False)
    with pytest.raises(ConfigError) as found:
        parse_backend({"name": "c", "uri": "http://x", "tier": 6})
    assert found.value.problems == [
        "the request: [backends] has no key uri; did you mean url?",
        "the request: [backends] tier = 6 is not allowed; it takes a whole number from 1 to 5.",
        "the request: [backends] lacks url, which has no default.",
    ]
