import time

import jax
import jax.numpy as jnp
import pytest
import tqdm

from skyens.assimilation import cycle
from skyens.observations import Diagonal, Observation


@pytest.fixture
def shown(monkeypatch):
    """Bars, as what they were told."""
    bars = []

    class Bar:
        def __init__(self, *, total, desc, **more):
            self.total, self.desc, self.n, self.closed = total, desc, 0, False
            bars.append(self)

        def update(self, number):
            self.n += number

        def close(self):
            self.closed = True

    monkeypatch.setattr(tqdm, "tqdm", Bar)
    return bars


def run(ensemble, times=3, progress: bool | str = True, **more):
    return cycle(
        lambda state, forcing=None, *, key=None: 0.5 * state,
        lambda background, observation, *, key=None: (background, None),
        ensemble,
        lambda value: Observation(value, lambda state: state, Diagonal(1.0)),
        jnp.zeros((times, 1)),
        key=jax.random.key(0),
        progress=progress,
        **more,
    )


def settle(result):
    jax.block_until_ready(result)
    jax.effects_barrier()


def test_the_bar_ends_where_the_cycle_does_and_comes_again(shown):
    compiled = jax.jit(lambda ensemble: run(ensemble, 250, "Filter").analyses)
    for number in (1, 2):
        settle(compiled(jnp.ones((2, 1))))
        assert len(shown) == number
        bar = shown[-1]
        assert (bar.desc, bar.total, bar.n, bar.closed) == ("Filter", 250, 250, True)


def test_it_neither_breaks_maps_nor_gradients(shown):
    total = lambda ensemble: jnp.sum(run(ensemble, checkpoint=True).analyses)
    members = jnp.ones((4, 2, 1))
    slope = jax.jit(jax.vmap(jax.grad(total)))(members)
    settle(slope)
    assert slope.ravel().tolist() == [0.875] * 8  # 1/2 + 1/4 + 1/8
    assert shown[0].n == shown[0].total == 3
    windows = run(members[0], window=1, progress="Smoother")
    settle(windows)
    assert shown[-1].desc == "Smoother"


def test_nobody_is_bothered_without_it_or_within_five_seconds(capsys):
    start = time.monotonic()
    settle(run(jnp.ones((2, 1)), progress=False))
    settle(run(jnp.ones((2, 1))))
    if time.monotonic() - start < 5:
        assert capsys.readouterr() == ("", "")
