"""Preconditioning: a network becomes a denoiser of order one at every noise level."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from skyens.diffusion._broadcast import aligned, wide
from skyens.diffusion._denoisers import Scalar


class Preconditioned(eqx.Module):
    """A network as a denoiser, its inputs and targets of unit variance.

    With s the noise level and d the spread of the clean states,

        D(x, s) = d^2 / (s^2 + d^2) x + s d / sqrt(s^2 + d^2) F(x / sqrt(s^2 + d^2), l),

    where `F(x, l, *, condition)` is the network, which keeps shape and dtype, and
    `l = log(s) / 4` tells it the noise level. Where s is small the network adds little
    to `x`, where it is large it predicts the clean state itself. `D(x, 0)` is `x`.

    The network knows the levels from `sigma_min` to `sigma_max`. Outside of them it is
    told the nearer end; samplers refuse schedules that go there.

    Source: Karras et al. (2022), NeurIPS 35, arXiv:2206.00364, section 5.
    """

    network: Callable
    sigma_data: Float[Array, "*spread"] = eqx.field(metadata={"trainable": False})
    sigma_min: Float[Array, ""] = eqx.field(metadata={"trainable": False})
    sigma_max: Float[Array, ""] = eqx.field(metadata={"trainable": False})

    def __init__(
        self,
        network: Callable,
        sigma_data: float | Float[Array, "*spread"] = 1.0,
        *,
        sigma_min: Scalar = 0.002,
        sigma_max: Scalar = 80.0,
    ):
        """Wrap a network.

        Args:
            network: `network(x, level, *, condition=None)`, as those of `nn` are: one
                sample, `level` a scalar.
            sigma_data: standard deviation of the clean states about 0, in their units;
                one number, or an array of the state's rank that broadcasts to it, such
                as `(channel, 1, 1)`.
            sigma_min: lowest level of training, in the state's units.
            sigma_max: highest level of training, in the state's units.

        Raises:
            EquinoxRuntimeError: not 0 < sigma_min < sigma_max < inf, or `sigma_data`
                not positive and finite.
        """
        spread = jnp.asarray(sigma_data, float)
        low, high = jnp.asarray(sigma_min, float), jnp.asarray(sigma_max, float)
        self.network = network
        # Written so that NaN fails too.
        self.sigma_data = eqx.error_if(
            spread,
            ~((spread > 0) & jnp.isfinite(spread)),
            "`sigma_data` must be positive and finite.",
        )
        self.sigma_min = eqx.error_if(
            low,
            ~((low > 0) & (high > low) & jnp.isfinite(high)),
            "Noise levels need 0 < `sigma_min` < `sigma_max` < inf.",
        )
        self.sigma_max = high

    def __call__(
        self, x: Float[Array, "*state"], sigma: Scalar, *, condition: Any = None
    ) -> Float[Array, "*state"]:
        """Return the expected clean state, in the shape, units and dtype of `x`.

        `condition` goes to the network.

        Raises:
            ValueError: `sigma_data` does not fit the shape of `x`, or the network
                returns another shape or dtype than it was given.
        """
        dtype = wide(x.dtype)
        spread = aligned("sigma_data", self.sigma_data, x.shape, dtype)
        sigma = jnp.asarray(sigma).astype(dtype)
        total = jnp.sqrt(sigma**2 + spread**2)
        low, high = (end.astype(dtype) for end in (self.sigma_min, self.sigma_max))
        level = jnp.log(jnp.clip(sigma, low, high)) / 4
        keep, move = (spread / total) ** 2, sigma * spread / total
        scaled = x / total.astype(x.dtype)
        out = self.network(scaled, level.astype(x.dtype), condition=condition)
        if out.shape != x.shape or out.dtype != x.dtype:
            raise ValueError(
                f"`network` must keep shape and dtype: it was given {x.dtype}{x.shape} "
                f"and returned {out.dtype}{out.shape}."
            )
        return keep.astype(x.dtype) * x + move.astype(x.dtype) * out

    def weight(self, sigma: Scalar) -> Float[Array, "*spread"]:
        """Return the weight of squared errors that makes the network's order one.

        It is `(s^2 + d^2) / (s d)^2`, per unit of the state squared, in the shape of
        `sigma_data`.
        """
        sigma = jnp.asarray(sigma)
        spread = self.sigma_data.astype(sigma.dtype)
        return 1 / sigma**2 + 1 / spread**2
