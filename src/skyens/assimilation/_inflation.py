"""Inflation: give an analysis ensemble back some of the spread it lost."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact, Key, PyTree

from skyens.assimilation._ensemble import as_pytree, centre, count_members
from skyens.observations import Observation


def ensemble_spread(
    ensemble: Inexact[Array, "member *state"],
) -> Float[Array, "*state"]:
    """Return the unbiased standard deviation over members, in the ensemble's units.

    That of complex numbers is real, `sqrt(mean(abs(x - mean)**2))`. Its gradient is 0,
    not NaN, where all members are equal.

    Raises:
        ValueError: there are fewer than two members.
    """
    members = count_members(ensemble)
    _, anomalies = centre(ensemble)
    variance = jnp.sum(jnp.real(anomalies * jnp.conj(anomalies)), axis=0) / (
        members - 1
    )
    # Double where: the square root must never see the 0 it would differentiate.
    return jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1)), 0)


class RelaxToPriorSpread(eqx.Module):
    """Inflate an analysis by relaxing its spread to the background's (RTPS).

    Each perturbation is scaled pointwise, so that the new spread is
    `(1 - alpha) * analysis_spread + alpha * background_spread`. The mean stays.
    Good values: 0.5 to 0.95. Where the analysis has no spread there is nothing to
    scale, and it stays as it is. Leaves of integers pass through.

    Source: Whitaker & Hamill (2012), Mon. Wea. Rev. 140, 3078-3089.
    """

    alpha: Float[Array, ""]  # an array leaf: trainable, and new values never recompile

    def __init__(self, alpha: float | Float[Array, ""]):
        """Set `alpha`, dimensionless, from 0 (no inflation) to 1 (full relaxation).

        Raises:
            EquinoxRuntimeError: `alpha` lies outside [0, 1] (checked under jit too).
        """
        alpha = jnp.asarray(alpha, float)
        inside = (alpha >= 0) & (alpha <= 1)
        self.alpha = eqx.error_if(alpha, ~inside, "`alpha` must lie in [0, 1].")

    def __call__(
        self,
        analysis: PyTree[Array],
        background: PyTree[Array],
        *,
        key: Key[Array, ""] | None = None,
    ) -> PyTree[Array]:
        """Return the inflated analysis, in the dtypes and units of `analysis`.

        It draws nothing at random: the key is there for pieces that do.
        """
        return jax.tree.map(self._relax, analysis, background)

    def _relax(self, analysis, background):
        analysis = jnp.asarray(analysis)
        if not eqx.is_inexact_array(analysis):
            return analysis
        _, anomalies = centre(analysis)
        after, before = ensemble_spread(analysis), ensemble_spread(background)
        ratio = jnp.where(after > 0, before / jnp.where(after > 0, after, 1), 1)
        excess = self.alpha.astype(ratio.dtype) * (ratio - 1)
        return analysis + excess[None].astype(analysis.dtype) * anomalies


class Inflated(eqx.Module):
    """A method followed by an inflation: `Inflated(ETKF(), RelaxToPriorSpread(0.7))`.

    A method again, with the memory of the one it holds. The inflation is any callable
    `(analysis, background, *, key) -> analysis`.
    """

    method: Callable[..., tuple[Any, Any]]
    inflation: Callable[..., Any]

    def __init__(
        self,
        method: Callable[..., tuple[Any, Any]],
        inflation: Callable[..., Any],
    ):
        """Set the `method`, and the `inflation` of its analyses."""
        self.method = as_pytree(method)
        self.inflation = as_pytree(inflation)

    def __call__(
        self,
        background: PyTree[Array],
        observation: Observation,
        *,
        key: Key[Array, ""] | None = None,
    ) -> tuple[PyTree[Array], Any]:
        """Return the inflated analysis, and the info of the method."""
        first, second = (None, None) if key is None else jax.random.split(key)
        analysis, info = self.method(background, observation, key=first)
        if (successor := getattr(info, "method", None)) is not None:
            successor = Inflated(successor, self.inflation)
            info = eqx.tree_at(lambda info: info.method, info, successor)
        return self.inflation(analysis, background, key=second), info
