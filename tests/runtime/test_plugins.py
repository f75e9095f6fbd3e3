"""Plugins are found as without the block, in metadata that is read once."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

from nexus.runtime.plugins import metadata_read_once

PATCH = """
from importlib import metadata
from gevent import monkey
from nexus.runtime.plugins import metadata_read_once
reads = []
scan = metadata.entry_points
metadata.entry_points = lambda **words: reads.append(words) or scan(**words)
with metadata_read_once():
    monkey.patch_all()
print(len(reads), monkey.is_module_patched("socket"))
import plugin
print(plugin.events)
"""
"""gevent's own events call a plugin that is found by its entry point."""


def test_the_same_plugins_are_found():
    groups = {entry.group for entry in metadata.entry_points(name="pytest11")} | {"pytest11", "no"}
    before = {group: set(metadata.entry_points(group=group)) for group in groups}
    assert before["pytest11"]
    with metadata_read_once():
        assert {group: set(metadata.entry_points(group=group)) for group in groups} == before


def test_it_ends_with_the_block():
    own = metadata.entry_points
    with metadata_read_once():
        assert metadata.entry_points is not own
    assert metadata.entry_points is own


def test_gevent_reads_once_and_calls_its_plugins(tmp_path: Path):
    (tmp_path / "plugin.py").write_text("events = []\ntold = lambda event: events.append(1)\n")
    info = tmp_path / "plugin-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1\n")
    group = "gevent.plugins.monkey.did_patch_all"
    (info / "entry_points.txt").write_text(f"[{group}]\nplugin = plugin:told\n")
    command = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{PATCH}"
    done = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["1 True", "[1]"]
