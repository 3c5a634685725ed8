import chex
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens.diffusion import ExactTrace, Hutchinson, Trace


@pytest.mark.parametrize("trace", [ExactTrace(), Hutchinson(20_000)])
def test_traces_are_those_of_the_jacobian(trace):
    assert isinstance(trace, Trace)
    rng = np.random.default_rng(1)
    matrix = rng.normal(size=(6, 6))
    x = jnp.asarray(rng.normal(size=(2, 3)))
    function = lambda x: jnp.sin(jnp.asarray(matrix) @ x.ravel()).reshape(x.shape)
    value, found = trace(function, x, trace.prepare(x, jr.key(0)))
    chex.assert_trees_all_close(value, function(x))
    jacobian = np.cos(matrix @ np.ravel(x))[:, None] * matrix
    symmetric = (jacobian + jacobian.T) / 2
    off = np.sum(symmetric**2) - np.sum(np.diag(symmetric) ** 2)
    # Hutchinson's variance is 2 off / probes for random signs.
    chance = 5 * np.sqrt(2 * off / 20_000) if isinstance(trace, Hutchinson) else 1e-10
    np.testing.assert_allclose(found, np.trace(jacobian), atol=chance)


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match="`probes` must be at least 1, got 0"):
        Hutchinson(0)
    with pytest.raises(ValueError, match="give a `key`"):
        Hutchinson().prepare(jnp.ones(3), None)
