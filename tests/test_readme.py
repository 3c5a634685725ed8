import re
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.usefixtures("_user_settings")
def test_the_example_runs_as_shown_and_prints_what_it_says(capsys):
    (example,) = re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.M)
    assert len(example.splitlines()) <= 16
    exec(compile(example, "README.md", "exec"), {})
    before, after = map(float, re.findall(r"\d\.\d+", capsys.readouterr().out)[:2])
    shown = re.search(r"CRPS (\d\.\d+) before, (\d\.\d+) after", README)
    assert shown is not None
    assert [before, after] == pytest.approx([*map(float, shown.groups())], abs=0.02)
    assert after < before / 2


@pytest.fixture
def _user_settings():
    """What a user has who sets nothing: float32, and promotion as JAX does it."""
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        yield


def test_pictures_and_links_exist():
    for path in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / path).exists(), path
