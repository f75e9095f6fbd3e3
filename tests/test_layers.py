"""Folders are the architecture: imports point one way."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "nexus"
BASE = {"errors", "backend_errors", "config", "host", "log", "notify", "stage", "stderr", "supervised", "text"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "backend_errors": {"errors"},
    "config": {"text"},
    "host": set(),
    "log": {"stderr", "text"},
    "notify": set(),
    "stage": set(),
    "stderr": set(),
    "supervised": set(),
    "text": set(),
    "fleet": BASE,
    "backends": BASE | {"fleet"},
    "routing": BASE | {"fleet"},
    "metrics": BASE | {"fleet"},
    "proxy": BASE | {"fleet", "backends", "routing", "metrics"},
    "demo": BASE,
    "web": BASE | {"fleet", "backends", "routing", "metrics", "proxy"},
    "health": BASE | {"fleet", "backends", "routing", "metrics", "proxy", "web"},
    "app": BASE | {"fleet", "backends", "routing", "metrics", "proxy", "web"},
    "master": BASE | {"fleet"},
    "hooks": BASE | {"fleet", "master"},
    "cli": BASE | {"fleet", "metrics", "routing", "proxy", "demo", "health"},
    "__main__": {"cli"},
    "__init__": set(),
}


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            modules = (
                [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "nexus" else [node.module]
            )
        found |= {module.split(".")[1] for module in modules if module.startswith("nexus.")}
    return found - {"__version__"}


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    part = part_of(path)
    assert imported(path) - {part} <= MAY_IMPORT[part]


@pytest.mark.parametrize("module", ["flask", "werkzeug", "gunicorn", "gevent"])
def test_the_engine_knows_no_server(module):
    for folder in ("proxy", "routing", "fleet", "metrics", "backends"):
        for path in (ROOT / folder).rglob("*.py"):
            if path.parent.name != "worker":
                assert f"import {module}" not in path.read_text(), path
                assert f"from {module}" not in path.read_text(), path


def test_routing_does_no_input_or_output():
    for path in (ROOT / "routing").rglob("*.py"):
        names = {node.names[0].name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import)}
        assert names <= {"msgspec", "json", "math", "re"}, path
