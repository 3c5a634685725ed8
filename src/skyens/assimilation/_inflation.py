"""Inflation: give an ensemble back some of the spread it lost.

A piece is any callable `(analysis, background, *, key) -> analysis`. It is put after a
method, to inflate its analyses, or before it, to inflate its backgrounds: `Inflated`.

How much is a leaf of every piece and method, as the length of a localisation is: both
are learned by `jax.grad` of a proper score through the cycles,

    def loss(logarithm):
        method = ETKF(jnp.exp(logarithm))
        result = cycle(step, method, ensemble, observe, data, key=key)
        return jnp.mean(scores.crps(result.backgrounds, truth, axis=1))

and any optimiser. A few tens of cycles are enough, of several periods at a time; start
from too much inflation rather than too little: a filter that has lost the truth has
gradients of no use.
"""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Inexact, Key, PyTree

from skyens.assimilation._ensemble import (
    Recorded,
    as_pytree,
    centre,
    count_members,
    split,
    wide,
)
from skyens.assimilation._weighted import Weighted
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
        self.alpha = _share(alpha)

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


class RelaxToPriorPerturbations(eqx.Module):
    """Inflate an analysis by mixing its perturbations with the background's (RTPP).

    The new perturbations are `(1 - alpha) * analysis + alpha * background`, member by
    member. The mean stays. Good values: 0.5 to 0.9. Leaves of integers pass through.

    Source: Zhang et al. (2004), Mon. Wea. Rev. 132, 1238-1253, equation 5.
    """

    alpha: Float[Array, ""]

    def __init__(self, alpha: float | Float[Array, ""]):
        """Set `alpha`, dimensionless, from 0 (no inflation) to 1 (full relaxation).

        Raises:
            EquinoxRuntimeError: `alpha` lies outside [0, 1] (checked under jit too).
        """
        self.alpha = _share(alpha)

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
        dtype = wide(analysis.dtype)
        _, after = centre(analysis.astype(dtype))
        _, before = centre(jnp.asarray(background).astype(dtype))
        return _add(self.alpha.astype(dtype) * (before - after), analysis)


def _share(alpha: float | Float[Array, ""]) -> Float[Array, ""]:
    alpha = jnp.asarray(alpha, float)
    inside = (alpha >= 0) & (alpha <= 1)
    return eqx.error_if(alpha, ~inside, "`alpha` must lie in [0, 1].")


class Multiplicative(eqx.Module):
    """Inflate by multiplying the perturbations; the mean stays.

    After a method of this room it is the same as that method's own `inflation`.

    Source: Anderson & Anderson (1999), Mon. Wea. Rev. 127, 2741-2758.
    """

    factor: Float[Array, ""]
    where: Callable[[Any], Any] | None = eqx.field(static=True)

    def __init__(
        self,
        factor: float | Float[Array, ""],
        *,
        where: Callable[[Any], Any] | None = None,
    ):
        """Set the `factor` of perturbations, dimensionless, above 0; 1 is none.

        `where` selects the part of the state to inflate; otherwise it is all leaves of
        real or complex numbers.

        Raises:
            EquinoxRuntimeError: `factor` is not above 0.
        """
        factor = jnp.asarray(factor, float)
        message = "`factor` must be above 0; 1 is none."
        self.factor = eqx.error_if(factor, ~(factor > 0), message)
        self.where = where

    def __call__(
        self,
        analysis: PyTree[Array],
        background: PyTree[Array],
        *,
        key: Key[Array, ""] | None = None,
    ) -> PyTree[Array]:
        """Return the inflated analysis; background and key are there for others."""
        return multiply(analysis, self.factor, self.where)


class Additive(eqx.Module):
    """Inflate by adding random perturbations, which stand for errors of the model.

    Those of the members sum to 0, so the mean stays; on average they add
    `scale**2` times their covariance.

    Source: Whitaker et al. (2008), Mon. Wea. Rev. 136, 463-482; Hamill & Whitaker
    (2005), Mon. Wea. Rev. 133, 3132-3147.
    """

    scale: Float[Array, ""]
    perturbation: Callable[..., Any] | PyTree[Any]

    def __init__(
        self,
        perturbation: Callable[..., Any] | PyTree[Any],
        scale: float | Float[Array, ""] = 1.0,
    ):
        """Set what to add.

        Args:
            perturbation: `perturbation(key)` draws one for one member, a pytree of the
                structure of its state; or a root of the covariance: a pytree of arrays
                `(mode, *state)`, columns that are summed with standard normal
                coefficients, `(x_k - mean) / sqrt(K - 1)` of K past errors say. None
                stands for leaves that are left as they are.
            scale: factor of the perturbations, not negative.

        Raises:
            EquinoxRuntimeError: `scale` is negative.
        """
        scale = jnp.asarray(scale, float)
        message = "`scale` must not be negative."
        self.scale = eqx.error_if(scale, ~(scale >= 0), message)
        if callable(perturbation):
            self.perturbation = as_pytree(perturbation)
        else:
            self.perturbation = jax.tree.map(jnp.asarray, perturbation)

    def __call__(
        self,
        analysis: PyTree[Array],
        background: PyTree[Array],
        *,
        key: Key[Array, ""] | None = None,
    ) -> PyTree[Array]:
        """Return the inflated analysis, in the dtypes of `analysis`.

        Raises:
            ValueError: `key` is missing, or a perturbation has not the shape of the
                leaf it is for.
        """
        if key is None:
            raise ValueError("`key` is needed to draw what is added; give one.")
        keys = jr.split(key, count_members(analysis))
        drawn = jax.vmap(self._draw)(keys)

        def add(drawn, leaf):
            if drawn is None:
                return leaf
            leaf = jnp.asarray(leaf)
            if drawn.shape != leaf.shape or not eqx.is_inexact_array(leaf):
                raise ValueError(
                    f"perturbations of shape {drawn.shape} do not fit a leaf of "
                    f"{leaf.dtype} of shape {leaf.shape}."
                )
            _, anomalies = centre(drawn)
            return _add(self.scale.astype(wide(drawn.dtype)) * anomalies, leaf)

        return jax.tree.map(add, drawn, analysis, is_leaf=lambda leaf: leaf is None)

    def _draw(self, key):
        if callable(self.perturbation):
            return self.perturbation(key)
        leaves = jax.tree.leaves(self.perturbation)
        normal = jr.normal(key, (len(leaves[0]),))
        mix = lambda root: jnp.tensordot(
            normal.astype(root.dtype), root, 1, precision="highest"
        )
        return jax.tree.map(mix, self.perturbation)


class Inflated(eqx.Module):
    """A method with inflation: `Inflated(ETKF(), RelaxToPriorSpread(0.7))`.

    A method again, with the memory of the one it holds. A piece of inflation is any
    callable `(analysis, background, *, key) -> analysis`; several are applied one after
    the other, all with the background that the method was given.

    Inflation belongs after the analysis in this room, as in the methods' own factor:
    what is stored and verified then has the spread that the next forecast starts from.
    Pieces that stand for errors of the model may go `before` it, so that the analysis
    at hand knows of them: they are called with the background in both places, where
    `Multiplicative` and `Additive` have an effect and relaxations have none.

    Where no observation is used the background comes back as it is, uninflated.
    """

    method: Callable[..., tuple[Any, Any]]
    inflation: tuple[Callable[..., Any], ...]
    before: tuple[Callable[..., Any], ...]

    def __init__(
        self,
        method: Callable[..., tuple[Any, Any]],
        inflation: Callable[..., Any] | Sequence[Callable[..., Any]] = (),
        *,
        before: Callable[..., Any] | Sequence[Callable[..., Any]] = (),
    ):
        """Set the `method`, the `inflation` of its analyses and that `before` it."""
        self.method = as_pytree(method)
        self.inflation = _pieces(inflation)
        self.before = _pieces(before)

    def __call__(
        self,
        background: PyTree[Array],
        observation: Observation,
        *,
        key: Key[Array, ""] | None = None,
    ) -> tuple[PyTree[Array], Any]:
        """Return the inflated analysis, and the info of the method.

        Raises:
            ValueError: there are pieces `before`, and the predictions were recorded
                along a window, where these pieces have not been; or the members are
                `Weighted`, and pieces know no weights.
        """
        if self.before and isinstance(observation.operator, Recorded):
            raise ValueError(
                "the observation has predictions of the members as they were along the "
                "window: inflate after the analysis, not `before` it."
            )
        count = 1 + len(self.inflation) + len(self.before)
        keys = (None,) * count if key is None else jr.split(key, count)
        own, after, ahead = keys[0], keys[1 : count - len(self.before)], keys[1:]
        ahead = ahead[len(self.inflation) :]
        inflated = background
        for piece, one in zip(self.before, ahead, strict=True):
            inflated = piece(inflated, background, key=one)
        analysis, info = self.method(inflated, observation, key=own)
        if isinstance(background, Weighted) or isinstance(analysis, Weighted):
            raise ValueError(
                "`Inflated` is for members that count the same, got Weighted ones: "
                "give a particle filter its own `regularisation`."
            )
        for piece, one in zip(self.inflation, after, strict=True):
            analysis = piece(analysis, background, key=one)
        if (used := getattr(info, "used", None)) is not None:
            active = jnp.any(used > 0)
            choose = lambda a, b: jnp.where(active, a, b)
            analysis = jax.tree.map(choose, analysis, background)
        if (successor := getattr(info, "method", None)) is not None:
            again = Inflated(successor, self.inflation, before=self.before)
            info = eqx.tree_at(lambda info: info.method, info, again)
        return analysis, info


def multiply(
    ensemble: PyTree[Array],
    factor: Float[Array, ""],
    where: Callable[[Any], Any] | None,
) -> PyTree[Array]:
    """Return the ensemble with perturbations multiplied by `factor`, its mean kept."""
    part, rest = split(ensemble, where)

    def one(leaf):
        _, anomalies = centre(leaf.astype(wide(leaf.dtype)))
        return _add((factor.astype(wide(leaf.dtype)) - 1) * anomalies, leaf)

    return eqx.combine(jax.tree.map(one, part), rest)


def _add(increment: Array, leaf: Array) -> Array:
    return (leaf.astype(increment.dtype) + increment).astype(leaf.dtype)


def _pieces(inflation: Any) -> tuple[Callable[..., Any], ...]:
    several = inflation if isinstance(inflation, Sequence) else [inflation]
    return tuple(as_pytree(piece) for piece in several)
