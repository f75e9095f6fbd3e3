"""Folders are the architecture: imports point one way, for type checking too."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "nexus"
LEVELS: list[set[str]] = [
    {"errors", "runtime"},
    {"providers"},
    {"config"},
    {"fleet", "http"},
    {"routing", "access"},
    {"metrics", "dialects"},
    {"proxy"},
    {"admin", "server"},
    {"app", "health"},
    {"cli"},
    {"__main__"},
]
"""A part imports from the levels below its own. `nexus` itself holds the version alone."""
NO_SERVER = ("proxy", "dialects", "providers", "routing", "metrics", "fleet", "http", "config")
"""Parts that run under any server: none of them imports Flask, gunicorn or gevent."""
LEVEL = {part: number for number, parts in enumerate(LEVELS) for part in parts}


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@cache
def modules(path: Path) -> set[str]:
    """Every module that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def imported(path: Path) -> set[str]:
    return {name.split(".")[1] for name in modules(path) if name.startswith("nexus.")} - {
        "__version__"
    }


SOURCES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    part = part_of(path)
    if part == "__init__":
        assert not imported(path)
        return
    upward = {name for name in imported(path) - {part} if LEVEL[name] >= LEVEL[part]}
    assert not upward


def test_no_module_imports_itself_by_others():
    """No circle between modules either, for type checking or within a function."""
    names = {
        ".".join(path.relative_to(ROOT.parent).with_suffix("").parts): path for path in SOURCES
    }
    graph = {
        name: {other for other in modules(path) if other in names} for name, path in names.items()
    }
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " → ".join([*above, name])
        if name not in done:
            for other in graph[name]:
                visit(other, (*above, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("module", ["flask", "werkzeug", "gunicorn", "gevent"])
def test_the_engine_knows_no_server(module):
    for folder in NO_SERVER:
        for path in (ROOT / folder).rglob("*.py"):
            assert module not in {name.split(".")[0] for name in modules(path)}, path


def test_nothing_imports_the_demo_backend_but_commands():
    assert {
        part_of(path)
        for path in SOURCES
        if "nexus_demo" in {name.split(".")[0] for name in modules(path)}
    } <= {"cli"}


def test_routing_does_no_input_or_output():
    for path in (ROOT / "routing").rglob("*.py"):
        names = {
            node.names[0].name
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Import)
        }
        assert names <= {"msgspec", "json", "math", "re"}, path
