import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

from skyens.sparse import compress
from skyens.sparse._least_squares import check_support, least_squares

solve = eqx.filter_jit(least_squares)


def data():
    random = np.random.default_rng(0)
    phi = random.normal(size=(40, 6)) * 10.0 ** np.arange(-3, 3)
    return phi, random.normal(size=40)


@pytest.mark.parametrize("kept", [[], [2], [0, 1, 4], list(range(6))])
def test_any_support_is_that_of_plain_least_squares(kept):
    phi, y = data()
    support = np.isin(np.arange(6), kept)
    solution = solve(
        compress(jnp.asarray(phi), jnp.asarray(y)), jnp.asarray(support), jnp.zeros(())
    )
    expected, *_ = np.linalg.lstsq(phi[:, support], y, rcond=None)
    np.testing.assert_allclose(solution.mean[support], expected, rtol=1e-9)
    misfit = np.sum((y - phi[:, support] @ expected) ** 2)
    np.testing.assert_allclose(solution.misfit, misfit, rtol=1e-12)
    shape = np.linalg.inv(phi[:, support].T @ phi[:, support])
    found = np.asarray(solution.shape)[support][:, support]
    np.testing.assert_allclose(found, shape, rtol=1e-8)
    assert not np.any(solution.mean[~support])
    assert not np.any(solution.shape[~support])


def test_what_the_data_do_not_know_is_held_at_nothing():
    phi, y = data()
    phi[:, 5] = -3 * phi[:, 0]
    phi[:, 3] = 0
    solution = solve(
        compress(jnp.asarray(phi), jnp.asarray(y)), jnp.ones(6, bool), jnp.zeros(())
    )
    scale = np.linalg.norm(phi, axis=0)
    unit = phi / np.where(scale > 0, scale, 1)
    expected = np.linalg.pinv(unit) @ y / np.where(scale > 0, scale, 1)
    np.testing.assert_allclose(solution.mean, expected, rtol=1e-6, atol=1e-15)
    assert solution.support.tolist() == [True] * 3 + [False] + [True] * 2
    # Their variance is large: a duplicate is the first to leave a path.
    width = np.diagonal(solution.shape) * scale**2
    assert min(width[0], width[5]) > 1e3 * max(width[[1, 2, 4]])


def test_supports_are_checked():
    problem = compress(*(jnp.asarray(part) for part in data()))
    assert check_support(problem, None).tolist() == [True] * 6
    for wrong in (jnp.ones(5, bool), jnp.ones(6)):
        with pytest.raises(ValueError, match="6 booleans"):
            check_support(problem, wrong)
