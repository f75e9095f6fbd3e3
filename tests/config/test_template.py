"""The configuration that `nexus config init` writes."""

from pathlib import Path

from nexus.config import Config, load
from nexus.config.template import template

ROOT = Path(__file__).parent.parent.parent


def test_it_loads_to_the_defaults_without_a_warning(tmp_path):
    (tmp_path / "n.toml").write_text(template())
    loaded = load(tmp_path / "n.toml", environ={})
    assert loaded.config == Config()
    assert loaded.warnings == []


def test_the_example_in_the_repository_is_the_same():
    assert (ROOT / "nexus.example.toml").read_text() == template(), (
        "run: nexus config init -o nexus.example.toml --force"
    )
