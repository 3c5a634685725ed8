import equinox as eqx
import jax
import jax.numpy as jnp

from skyens.observations._callables import as_pytree


def test_functions_pass_through_jit_and_modules_stay_what_they_are():
    function = as_pytree(lambda x: 2.0 * x)
    assert jax.jit(lambda f, x: f(x))(function, jnp.asarray(3.0)) == 6.0
    module = eqx.nn.Lambda(jnp.sin)
    assert as_pytree(module) is module
    assert as_pytree(function) is function
