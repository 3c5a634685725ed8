"""Write the notebook beside each tutorial: the same cells, executed, small pictures.

Usage: python tutorials/twins.py tutorials/00_one_observation.py ...
"""

import base64
import io
import os
import sys
from pathlib import Path

import jupytext
from nbclient import NotebookClient
from PIL import Image

COLOURS = 40  # maps and diagrams look the same, at a fifth of the size
WIDTH = 600  # pixels at most


def shrink(picture: str) -> str:
    """Return the PNG, in base64 as it came, with a palette of `COLOURS`."""
    image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
    image.thumbnail((WIDTH, image.height), Image.Resampling.LANCZOS)
    small = io.BytesIO()
    # The median cut would give a rare colour, such as that of a few marks, to another.
    reduced = image.quantize(
        COLOURS, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE
    )
    reduced.save(small, "PNG", optimize=True)
    return base64.b64encode(small.getvalue()).decode()


def write_twin(script: Path) -> None:
    """Execute the cells of `script`, and write them with what they gave."""
    notebook = jupytext.read(script)
    folder = {"metadata": {"path": str(script.parent)}}
    NotebookClient(notebook, record_timing=False, resources=folder).execute()
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"  # the same at every writing
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                data["image/png"] = shrink(data["image/png"])
    jupytext.write(notebook, script.with_suffix(".ipynb"))


if __name__ == "__main__":
    os.environ["TQDM_DISABLE"] = "1"  # in a page, a progress bar is a thousand lines
    for argument in sys.argv[1:]:
        write_twin(Path(argument))
