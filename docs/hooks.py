"""Put the executed tutorials on the site: a page for each, with its pictures."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter

NOTEBOOKS = sorted(Path(__file__).parent.parent.joinpath("tutorials").glob("*.ipynb"))


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List the tutorials in the navigation, by the titles they give themselves."""
    tutorials = next(entry for entry in config.nav or [] if "Tutorials" in entry)
    tutorials["Tutorials"] = [f"tutorials/{path.stem}.md" for path in NOTEBOOKS]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages, and the pictures beside them."""
    for path in NOTEBOOKS:
        exporter = MarkdownExporter()
        # Outputs are named after their page, since all share a folder.
        resources = {"unique_key": path.stem, "output_files_dir": f"{path.stem}_files"}
        page, resources = exporter.from_filename(str(path), resources)
        page = page.replace(".ipynb)", ".md)")  # links from one to another
        page = re.sub(r"(\n *){3,}\n", "\n\n", page)  # gaps between outputs
        uri = f"tutorials/{path.stem}.md"
        files.append(File.generated(config, uri, content=page))
        for name, content in resources["outputs"].items():
            files.append(File.generated(config, f"tutorials/{name}", content=content))
    return files
