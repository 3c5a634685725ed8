"""Perturb: from a few analyses to many starting members."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, Key, PyTree

from skyens.sphere import Grid


def centred(
    analyses: Float[Array, "analysis *state"],
    perturbations: Float[Array, "analyses pair *states"],
) -> Float[Array, "member *state"]:
    """Return members in pairs about each analysis: `a + d` and `a - d` for every `d`.

    There are `2 * analysis * pair` of them, analysis by analysis, each pair side by
    side; the mean over an analysis's members is the analysis.

    Raises:
        ValueError: `perturbations` do not fit the analyses.
    """
    if perturbations.shape[:1] + perturbations.shape[2:] != analyses.shape:
        raise ValueError(
            "`perturbations` must be (analysis, pair, *state) for `analyses` of shape "
            f"{analyses.shape}, got {perturbations.shape}."
        )
    both = jnp.stack([perturbations, -perturbations], axis=2)
    members = jnp.expand_dims(analyses, (1, 2)) + both
    return members.reshape(-1, *analyses.shape[1:])


class HemisphericRMS(eqx.Module):
    """The root-mean-square of a field by hemisphere, blended across the tropics.

    A norm for `breed` that keeps one hemisphere's storms from silencing the other's:
    the area mean poleward of `latitude` in each, linear in latitude between.

    Source: Mahesh et al. (2024), arXiv:2408.03100 (huge ensembles).
    """

    grid: Grid = eqx.field(static=True)
    latitude: float = eqx.field(static=True, default=20.0)

    def __check_init__(self):
        """Check the latitude.

        Raises:
            ValueError: `latitude` is not above 0, or no row lies poleward of it.
        """
        rows = self.grid.latitude
        last = min(rows.max(), -rows.min())
        if not 0 < self.latitude <= last:
            raise ValueError(
                f"`latitude` must lie above 0 and at most at the grid's last rows, "
                f"{last:g} degrees, got {self.latitude}."
            )

    def __call__(
        self, field: Float[Array, "*channel latitude longitude"]
    ) -> Float[Array, "*channel latitude 1"]:
        """Return the norm at each row, in the units of `field`."""
        self.grid.check(field)
        rows = self.grid.latitude.round(12)  # an arc cosine may leave 20 below 20
        north = self._rms(field, rows >= self.latitude)
        south = self._rms(field, rows <= -self.latitude)
        blend = np.clip((rows / self.latitude + 1) / 2, 0, 1)
        blend = jnp.asarray(blend, field.dtype).reshape(
            (1,) * (field.ndim - 2) + (-1, 1)
        )
        return blend * north + (1 - blend) * south

    def _rms(self, field, rows: np.ndarray):
        weights = self.grid.weights * rows
        weights = jnp.asarray(weights / weights.sum(), field.dtype)
        weights = weights.reshape((1,) * (field.ndim - 2) + (-1, 1))
        square = jnp.mean(field**2, axis=-1, keepdims=True)
        square = jnp.sum(square * weights, axis=-2, keepdims=True)
        # Double where: the square root must never see the 0 it would differentiate.
        return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def breed(
    step: Callable[..., PyTree],
    analyses: PyTree,
    seed: PyTree,
    *,
    amplitude: PyTree,
    norm: Callable[[Array], Array],
    key: Key[Array, ""] | None = None,
) -> tuple[PyTree, PyTree]:
    """Breed the perturbation that grows fastest: let it grow, scale it back, repeat.

    Each cycle makes one step from an analysis with and without the perturbation (and
    with the same key), takes the difference, rescales it to `amplitude`, and goes on
    from the next analysis. Where the difference vanishes it stays 0.

    Args:
        step: `step(state, forcing=None, *, key=None) -> state`.
        analyses: the analyses to breed about, stacked on a leading cycle axis.
        seed: the first perturbation, shaped like one state.
        amplitude: what `norm` of each leaf is rescaled to, in its units.
        norm: of one leaf; a scalar, or an array that broadcasts against the leaf.
        key: for a stochastic step; each cycle gets it with its number folded in.

    Returns:
        the bred perturbation, and how much each cycle's norm grew over `amplitude`
        (leaves stacked on the cycle axis).

    Source: Toth & Kalnay (1993), Bull. Amer. Meteor. Soc. 74, 2317-2330.
    """
    add = lambda a, b: jax.tree.map(jnp.add, a, b)
    subtract = lambda a, b: jax.tree.map(jnp.subtract, a, b)

    def cycle(perturbation, inputs):
        number, analysis = inputs
        cycle_key = None if key is None else jr.fold_in(key, number)
        grown = subtract(
            step(add(analysis, perturbation), key=cycle_key),
            step(analysis, key=cycle_key),
        )
        size = jax.tree.map(norm, grown)
        # Double where: nothing to rescale stays nothing, with a finite gradient.
        safe = jax.tree.map(lambda s: jnp.where(s > 0, s, jnp.ones_like(s)), size)
        scaled = jax.tree.map(lambda d, s, a: d * (a / s), grown, safe, amplitude)
        growth = jax.tree.map(lambda s, a: s / a, size, amplitude)
        return scaled, growth

    cycles = jax.tree.leaves(analyses)[0].shape[0]
    return jax.lax.scan(cycle, seed, (jnp.arange(cycles), analyses))


def failed_members(trajectory: PyTree) -> Bool[Array, " member"]:
    """Return which members hold a number that is not finite, anywhere.

    Members lead every leaf. A failed member is data: count it, leave it out by
    `where=`; it changes no other.
    """
    bad = [
        ~jnp.isfinite(leaf).reshape(leaf.shape[0], -1).all(axis=1)
        for leaf in jax.tree.leaves(trajectory)
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]
    return jnp.stack(bad).any(axis=0)
