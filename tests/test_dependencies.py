"""The tests that start nothing need only what requirements-unit.txt names."""

import ast
import re
import sys
from importlib.metadata import packages_distributions, requires
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
OWN = {"nexus", "nexus_demo", "tests", "bench"}


def named(file: str) -> set[str]:
    """The distributions that a file of requirements names, with those that it includes."""
    found = set()
    for line in (ROOT / file).read_text().splitlines():
        if included := re.match(r"-r (\S+)", line):
            found |= named(included[1])
        elif re.match(r"\w", line):
            required = Requirement(line)
            if required.marker is None or required.marker.evaluate():
                found.add(_normal(required.name))
    return found


def _normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def imported(file: Path) -> set[str]:
    """What a module imports when it is read, apart from functions."""
    modules = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Import):
            modules |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules.add(node.module.partition(".")[0])
    return modules - sys.stdlib_module_names - OWN


def test_reading_the_modules_of_unit_tests_needs_only_their_packages():
    there, of = named("requirements-unit.txt"), packages_distributions()
    there |= {
        _normal(re.split(r"[^\w.-]", needed)[0])
        for distribution in sorted(there)
        for needed in requires(distribution) or []
        if "extra ==" not in needed
    }
    files = [
        file
        for file in (ROOT / "tests").rglob("*.py")
        if "real" not in file.parts
        and not re.search(r"^pytestmark = .*mark\.(e2e|long|real)", file.read_text(), re.MULTILINE)
    ]
    assert len(files) > 100
    missing = {
        (str(file.relative_to(ROOT)), module)
        for file in files
        for module in imported(file)
        if there.isdisjoint(map(_normal, of.get(module, [])))
    }
    assert not missing
