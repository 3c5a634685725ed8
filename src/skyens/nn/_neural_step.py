"""A network as a step: units, increments and the memory of its noise."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Key, PyTree

from skyens.nn._normaliser import Normaliser
from skyens.sphere import AutoregressiveField


class NeuralStep(eqx.Module):
    """Step fields in physical units with a network that predicts their change.

    The state is `{"value": fields, "noise": coefficients}`, the noise one channel for
    each of the network's; `start` makes one. Leave the noise out of an analysis by the
    filter's `where=`.
    """

    network: Callable
    normaliser: Normaliser
    change: Float[Array, " channel"] = eqx.field(metadata={"trainable": False})
    process: AutoregressiveField

    def __init__(
        self,
        network: Callable,
        normaliser: Normaliser,
        change: Float[Array, " channel"],
        process: AutoregressiveField,
    ):
        """Wrap a network.

        Args:
            network: `network(normalised fields, noise) -> normalised change`, such as
                `SFNO`, with `noise_channels`.
            normaliser: of the fields.
            change: typical size of each channel's change over the step, in its units.
            process: the noise in time, of order one, up to the network's `lmax`.
        """
        self.network, self.normaliser = network, normaliser
        self.change, self.process = jnp.asarray(change), process

    def start(
        self, value: Float[Array, "channel latitude longitude"], *, key: Key[Array, ""]
    ) -> dict[str, PyTree]:
        """Return the state of a member that starts from `value` (physical units)."""
        keys = jr.split(key, self.network.noise_channels)
        return {"value": value, "noise": jax.vmap(self.process.start)(keys)}

    def __call__(
        self, state: dict[str, PyTree], forcing: None = None, *, key: Key[Array, ""]
    ) -> dict[str, PyTree]:
        """Return the state one step later."""
        value, noise = state["value"], state["noise"]
        keys = jr.split(key, noise.shape[0])
        noise = jax.vmap(lambda n, k: self.process(n, key=k))(noise, keys)
        change = self.network(self.normaliser(value), noise)
        scale = self.change.astype(value.dtype)[:, None, None]
        return {"value": value + scale * change.astype(value.dtype), "noise": noise}
