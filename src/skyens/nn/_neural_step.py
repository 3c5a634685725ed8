"""A network as a step: units, increments and the memory of its noise."""

from collections.abc import Callable, Sequence

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Complex, Float, Key, PyTree

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
    processes: tuple[AutoregressiveField, ...]
    bounds: Normaliser | None
    limit: float = eqx.field(static=True)

    def __init__(
        self,
        network: Callable,
        normaliser: Normaliser,
        change: Float[Array, " channel"],
        processes: Sequence[AutoregressiveField],
        *,
        bounds: Normaliser | None = None,
        limit: float = 4.0,
    ):
        """Wrap a network.

        Args:
            network: `network(normalised fields, noise) -> normalised change`, such as
                `SFNO`, with `noise_channels`.
            normaliser: of the fields.
            change: typical size of each channel's change over the step, in its units.
            processes: the noise in time, one for each of the network's channels of
                noise, of order one and up to its `lmax`. Give some a memory and some
                none: training finds out which errors last.
            bounds: a guard for long runs: mean and standard deviation of the states
                that training saw. Within `limit` standard deviations of the mean a
                state is left as it is; beyond, it bends, and never reaches one more.
            limit: see `bounds`.

        Raises:
            ValueError: there is another number of processes than channels of noise.
        """
        if len(processes) != network.noise_channels:
            raise ValueError(
                f"`processes` must have one entry for each of the network's "
                f"{network.noise_channels} channels of noise, got {len(processes)}."
            )
        self.network, self.normaliser = network, normaliser
        self.change, self.processes = jnp.asarray(change), tuple(processes)
        self.bounds, self.limit = bounds, limit

    def start(
        self, value: Float[Array, "channel latitude longitude"], *, key: Key[Array, ""]
    ) -> dict[str, PyTree]:
        """Return the state of a member that starts from `value` (physical units)."""
        return {"value": value, "noise": self._draw(lambda i, p, k: p.start(k), key)}

    def __call__(
        self, state: dict[str, PyTree], forcing: None = None, *, key: Key[Array, ""]
    ) -> dict[str, PyTree]:
        """Return the state one step later."""
        value, noise = state["value"], state["noise"]
        noise = self._draw(lambda i, p, k: p(noise[i], key=k), key)
        change = self.network(self.normaliser(value), noise)
        scale = self.change.astype(value.dtype)[:, None, None]
        value = value + scale * change.astype(value.dtype)
        return {"value": self._bend(value), "noise": noise}

    def _bend(self, value):
        if self.bounds is None:
            return value
        departure = self.bounds(value)
        beyond = jnp.maximum(jnp.abs(departure) - self.limit, 0)
        excess = jnp.sign(departure) * (beyond - jnp.tanh(beyond))
        std = self.bounds.std.astype(value.dtype)
        return value - std.reshape(std.shape + (1,) * (3 - std.ndim)) * excess

    def _draw(self, draw: Callable, key) -> Complex[Array, "noise l m"]:
        """Stack one draw for each process, each with its own key."""
        size = self.network.lmax + 1
        if not self.processes:
            return jnp.zeros((0, size, size), jnp.result_type(complex))
        keys = jr.split(key, len(self.processes))
        pairs = enumerate(zip(self.processes, keys, strict=True))
        return jnp.stack([draw(i, process, k) for i, (process, k) in pairs])
