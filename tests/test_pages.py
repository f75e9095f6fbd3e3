"""The pages that are generated from tables are what the tables say."""

import runpy

import pytest

from tests.support.processes import ROOT

PAGES = runpy.run_path(str(ROOT / "docs" / "generate.py"))["PAGES"]


@pytest.mark.parametrize("name", PAGES)
def test_page_is_its_table(name):
    assert (ROOT / name).read_text() == PAGES[name](), "run: python docs/generate.py"
