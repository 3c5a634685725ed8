"""Beside each tutorial stands its notebook: the same cells, executed."""

import base64
from pathlib import Path

import jupytext
import pytest

TUTORIALS = Path(__file__).parent.parent / "tutorials"
SCRIPTS = sorted(TUTORIALS.glob("[0-9]*.py"))
LIMIT = 500_000  # bytes of pictures, in all notebooks together

each_tutorial = pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)


def cells_of(path):
    return [(cell.cell_type, cell.source) for cell in jupytext.read(path).cells]


def code_cells_of(script):
    notebook = jupytext.read(script.with_suffix(".ipynb"))
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def pictures_of(script):
    outputs = [output for cell in code_cells_of(script) for output in cell.outputs]
    pictures = [output.get("data", {}).get("image/png") for output in outputs]
    return [base64.b64decode(picture) for picture in pictures if picture]


@each_tutorial
def test_the_notebook_has_the_cells_of_the_script(script):
    twin = script.with_suffix(".ipynb")
    assert twin.exists(), f"`make twins` writes {twin.name}"
    assert cells_of(twin) == cells_of(script), "`make twins` writes them anew"


@each_tutorial
def test_the_notebook_ran_from_top_to_bottom_without_complaint(script):
    cells = code_cells_of(script)
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    outputs = [output for cell in cells for output in cell.outputs]
    assert all(output.output_type != "error" for output in outputs)
    assert all(output.get("name") != "stderr" for output in outputs)


@each_tutorial
def test_the_notebook_has_pictures(script):
    assert pictures_of(script)


def test_the_pictures_are_small_together():
    size = sum(len(picture) for script in SCRIPTS for picture in pictures_of(script))
    assert 0 < size <= LIMIT
