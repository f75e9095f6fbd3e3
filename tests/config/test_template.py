"""The configuration that `nexus config init` writes."""

from nexus.config import Config, load
from nexus.config.template import template


def test_it_loads_to_the_defaults_without_a_warning(tmp_path):
    (tmp_path / "n.toml").write_text(template())
    loaded = load(tmp_path / "n.toml", environ={})
    assert loaded.config == Config()
    assert loaded.warnings == []
