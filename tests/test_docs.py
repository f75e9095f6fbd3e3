"""The documentation hangs together: no link or anchor is dead, and every page is found from the
README."""

import re
from pathlib import Path

import pytest

from nexus.admin.openapi import document
from tests.support.processes import ROOT

PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "SECURITY.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "deploy").rglob("*.md")),
]
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def prose(page: Path) -> str:
    return FENCED.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """What its headings are called in links: lower case, words joined by hyphens, marks left
    out."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> list[tuple[Path, str]]:
    """(file, anchor) of each link to something of ours."""
    found = []
    for link in LINK.findall(prose(page)):
        if not link.startswith(("http://", "https://")):
            path, _, anchor = link.partition("#")
            found.append(((page.parent / path).resolve() if path else page, anchor))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target, anchor in links(page):
        assert target.exists(), target
        assert not anchor or anchor in anchors(target), f"{target.name}#{anchor}"


def test_every_page_is_linked_from_the_readme():
    found, new = set(), {ROOT / "README.md"}
    while new:
        found |= new
        new = {target for page in new if page.suffix == ".md" for target, _ in links(page)} - found
    assert set(PAGES) <= found


@pytest.mark.parametrize(
    "page", [ROOT / "Makefile", *PAGES], ids=lambda page: str(page.relative_to(ROOT))
)
def test_pages_name_no_path_of_their_authors(page):
    assert not re.search(r"/root/|/home/|/tmp/", page.read_text())


def test_the_page_of_the_api_has_every_path_and_every_problem():
    page = (ROOT / "docs/api.md").read_text()
    paths = {path for port in (False, True) for path in document(operations=port)["paths"]}
    names = {"{name}": "NAME", "{key_id}": "ID", "{model}": "{id}"}
    shown = {re.sub("{(name|key_id|model)}", lambda part: names[part[0]], path) for path in paths}
    assert [
        path for path in shown - {"/assets/NAME", "/my-key/NAME"} if f"{path}`" not in page
    ] == []
    source = (ROOT / "nexus/health/problems.py").read_text()
    codes = re.findall(r'problem\(\s*"([a-z_]+)"', source)
    assert len(codes) > 10
    assert [code for code in codes if f"`{code}`" not in page] == []


def test_every_promise_has_its_test():
    rows = [
        line for line in (ROOT / "SECURITY.md").read_text().splitlines() if line.startswith("| ")
    ][1:]
    assert len(rows) > 5
    for row in rows:
        files = [ROOT / name for name in re.findall(r"`(tests/[\w/]+\.py)`", row)]
        assert files, row
        there = {
            name
            for file in files
            for name in re.findall(r"^def (test_\w+)", file.read_text(), re.MULTILINE)
        }
        assert there.issuperset(re.findall(r"`(test_\w+)`", row)), row
