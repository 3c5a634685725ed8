import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skyens.sparse._evidence import System, log_evidence, scaled, statistics
from skyens.sparse._walk import walk

TERMS, ROWS = 6, 40
GRID = np.append(0, 2.0 ** np.arange(-8, 24, 0.25))


def system(variance) -> System:
    random = np.random.default_rng(2)
    phi = random.normal(size=(ROWS, TERMS)) + random.normal(size=(ROWS, 1))
    y = phi @ np.array([1.0, -1, 0.5, 0, 0, 0]) + 0.5 * random.normal(size=ROWS)
    triangle = jnp.asarray(np.linalg.qr(np.column_stack([phi, y]), mode="r"))
    parts = triangle[:-1, :-1], triangle[:-1, -1], triangle[-1, -1] ** 2
    return scaled(*parts, jnp.asarray(float(ROWS)), variance)[0]


@pytest.mark.parametrize("noise", [None, 0.5])
@pytest.mark.parametrize("start", [0.0, 100.0])
def test_at_its_end_no_single_change_raises_the_evidence(noise, start):
    at = system(noise)
    gram = at.factor.T @ at.factor
    evidence = jax.jit(jax.vmap(lambda r: log_evidence(at, statistics(at, r))))
    ratio = jnp.full(TERMS, start)
    ended, taken = jax.jit(lambda r: walk(at, gram, r, statistics(at, r), True))(ratio)
    assert taken > 0
    here = evidence(ended[None])[0]
    assert here > evidence(ratio[None])[0]
    for term in range(TERMS):
        others = jnp.tile(ended[None], (len(GRID), 1)).at[:, term].set(GRID)
        assert np.max(evidence(others)) <= here + 1e-8


def test_it_stays_where_it_is_not_enabled():
    at = system(None)
    ratio = jnp.full(TERMS, 100.0)
    gram = at.factor.T @ at.factor
    ended, taken = walk(at, gram, ratio, statistics(at, ratio), jnp.asarray(False))
    assert taken == 0
    np.testing.assert_array_equal(ended, ratio)
