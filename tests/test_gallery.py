"""The pages of the gallery are short, and each has its card."""

import ast
import re
from pathlib import Path

import pytest

GALLERY = Path(__file__).resolve().parents[1] / "docs" / "gallery"
if not GALLERY.is_dir():
    pytest.skip("not in a clone of the repository", allow_module_level=True)

PAGES = sorted(file.stem for file in GALLERY.glob("*.md") if file.stem != "index")


def read(page):
    """Text of a page."""
    return (GALLERY / f"{page}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_program_is_short_and_draws_with_a_display(page):
    cells = re.findall(r"```\{code-cell\}\n(.*?)```", read(page), re.DOTALL)
    program = "\n".join(cells)
    assert sum(bool(line.strip()) for line in program.splitlines()) <= 40
    assert all(len(line) <= 88 for line in program.splitlines())
    called = {
        node.func.value.id
        for node in ast.walk(ast.parse(program))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
    }
    assert any(name.endswith("Display") for name in called)


@pytest.mark.parametrize("page", PAGES)
def test_page_is_executed(page):
    front = "---\nfile_format: mystnb\nkernelspec:\n  name: python3\n---\n"
    assert read(page).startswith(front)


def test_every_page_has_a_card_with_its_picture_and_a_line_in_the_toctree():
    index = read("index")
    cards = re.findall(r":link: (\w+)\n.*\n:img-top: picture://gallery/(\w+)\n", index)
    assert all(link == picture for link, picture in cards)
    assert sorted(link for link, _ in cards) == PAGES
    toctree = re.search(r"\{toctree\}\n:hidden:\n\n(.*?)\n```", index, re.DOTALL)[1]
    assert sorted(toctree.split()) == PAGES
