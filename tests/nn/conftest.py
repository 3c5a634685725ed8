"""What tests of networks share."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skyens.training import trainable


@pytest.fixture
def awake():
    """A function that moves all weights of a network off their start, the zeros too."""

    def move(net, size=0.3):
        rng = np.random.default_rng(0)
        parameters, rest = eqx.partition(net, trainable(net))
        draw = lambda leaf: leaf + jnp.asarray(size * rng.normal(size=leaf.shape))
        return eqx.combine(jax.tree.map(draw, parameters), rest)

    return move


@pytest.fixture
def slopes():
    """Gradients of the mean square of a network in its parameters and its input."""

    @eqx.filter_jit
    def gradients(net, x, level, condition):
        parameters, rest = eqx.partition(net, trainable(net))
        run = lambda p, x: eqx.combine(p, rest)(x, level, condition=condition)
        loss = lambda p, x: (run(p, x) ** 2).mean()
        return jax.grad(loss, argnums=(0, 1))(parameters, x)

    return gradients
