import re
from pathlib import Path

import pytest

import skyens

ROOT = Path(__file__).parent.parent
PAGES = [
    page
    for page in sorted(ROOT.joinpath("docs").glob("*.md"))
    if "```python" in page.read_text()
]


def examples(page):
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.M)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_examples_of_a_page_run_one_after_the_other(page):
    names = {}
    for number, example in enumerate(examples(page)):
        exec(compile(example, f"{page.name}, example {number}", "exec"), names)


@pytest.mark.parametrize("room", skyens._ROOMS)
def test_every_room_has_a_page_in_the_navigation(room):
    assert f"::: skyens.{room}\n" in (ROOT / "docs/api" / f"{room}.md").read_text()
    assert f"- {room}: api/{room}.md\n" in (ROOT / "mkdocs.yml").read_text()
