import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens import demo, training
from skyens.demo import _learn


@pytest.fixture(scope="module")
def analyses():
    return demo.open_analyses()


@pytest.fixture
def tiny(monkeypatch):
    """A world small enough to train twice in a test."""
    sizes = dict(width=4, blocks=1, lmax=7, noise_channels=2)
    full = _learn.hyperparameters
    monkeypatch.setattr(_learn, "hyperparameters", lambda grid: full(grid) | sizes)
    monkeypatch.setattr(_learn, "UPDATES", 8)
    monkeypatch.setattr(_learn, "WORLDS", 6)
    monkeypatch.setattr(_learn, "BATCH", 2)


@pytest.mark.slow
def test_an_interrupted_training_resumes_exactly(analyses, tiny, tmp_path, monkeypatch):
    noisy = demo.fit_model_error(
        demo.physics(analyses.grid), analyses, members=4, key=jr.key(0)
    )
    train = lambda name: demo.train(
        noisy, analyses, 2, tmp_path / name, key=jr.key(1), signature={"seed": 1}
    )
    whole, _ = train("whole")

    class Interrupted(Exception):
        pass

    def stop_after_one_epoch(iterable, **settings):
        for count, item in enumerate(iterable):
            if settings.get("description") == "train" and count == 9:
                raise Interrupted
            yield item

    with monkeypatch.context() as patch:
        patch.setattr(training, "progress", stop_after_one_epoch)
        with pytest.raises(Interrupted):
            train("parts")
    resumed, report = train("parts")
    assert report["reused"] == 1
    again, report = train("parts")
    assert report["reused"] == 2
    for other in (resumed, again):
        leaves = zip(jax.tree.leaves(whole), jax.tree.leaves(other), strict=True)
        for a, b in leaves:
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_windows_are_turned_pieces_of_worlds():
    worlds = np.arange(4 * 9 * 3 * 10, dtype=np.float32).reshape(4, 9, 3, 10)
    windows = np.asarray(_learn.sample_windows(jnp.asarray(worlds), 3, key=jr.key(0)))
    assert windows.shape == (_learn.UPDATES, _learn.BATCH, 4, 3, 10)
    for window in windows.reshape(-1, 4, 3, 10)[:20]:
        world, first = divmod(int(window.min()) // 30, 9)
        turned = np.argmin(window[0, 0])
        piece = np.roll(worlds[world, first : first + 4], turned, axis=-1)
        np.testing.assert_array_equal(window, piece)
