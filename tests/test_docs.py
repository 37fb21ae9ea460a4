"""The pages keep up with the tree: links lead somewhere, and every CPU kernel has its row."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "kernels" / "README.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_exist(page):
    links = re.findall(r"\]\(([^)#]+)", page.read_text())
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


def test_every_cpu_kernel_is_described():
    described = set(re.findall(r"^\| `(\w+)\.py` \|", (ROOT / "kernels" / "README.md").read_text(), re.MULTILINE))
    files = {path.stem for path in (ROOT / "kernels" / "numba_cpu").glob("*.py")} - {"__init__"}
    assert files - described == set()
