"""The serial ensemble square-root filter: one observation after the other."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Key, PyTree

from skyens.assimilation._ensemble import (
    Info,
    centre,
    chi_square,
    count_members,
    counts,
    matmul,
    observe,
    split,
    wide,
)
from skyens.assimilation._global_update import positive_inflation, random_turn
from skyens.assimilation._letkf import check_independent
from skyens.assimilation._schur import Schur
from skyens.assimilation._transform import mean_weights
from skyens.assimilation._vertical import Levels, flatten, levels_of
from skyens.observations import Observation


class EnSRF(eqx.Module):
    """Serial ensemble square-root filter, global or localised.

    Each observation corrects the state and the predictions of those still to come. For
    one observation this is the ensemble adjustment Kalman filter (EAKF) too: shifting
    and shrinking the predictions, and regressing the state on them, is the same update.
    Unlocalised, mean and covariance are those of the `ETKF`, whatever the order.

    With a `Schur` localisation, covariances between an observation and the state, and
    the other observations, are tapered; results then depend a little on the order.
    Points that no observation reaches stay as they are, uninflated.

    The cost is observations times state times members, in a loop of as many steps as
    there are observations; its gradient keeps the ensemble of each step. The `LETKF` is
    for many observations.

    Sources: Whitaker & Hamill (2002), Mon. Wea. Rev. 130, 1913-1924; Anderson (2001),
    Mon. Wea. Rev. 129, 2884-2903, for the EAKF.
    """

    localisation: Schur | None
    inflation: Float[Array, ""]
    rotate: bool = eqx.field(static=True)
    shuffle: bool = eqx.field(static=True)
    where: Callable[[Any], Any] | None = eqx.field(static=True)

    def __init__(
        self,
        inflation: float | Float[Array, ""] = 1.0,
        rotate: bool = False,
        *,
        localisation: Schur | None = None,
        shuffle: bool = False,
        where: Callable[[Any], Any] | None = None,
    ):
        """Set how to filter.

        Args:
            inflation: factor of the analysis anomalies, dimensionless, above 0.
            rotate: as for `ETKF`; it needs a key.
            localisation: weights of covariances by distance, None for all 1.
            shuffle: whether to take the observations in random order, rather than as
                they come; it needs a key.
            where: the part of the state to update, as for `ETKF`.

        Raises:
            EquinoxRuntimeError: `inflation` is not above 0.
        """
        self.localisation = localisation
        self.inflation = positive_inflation(inflation)
        self.rotate = rotate
        self.shuffle = shuffle
        self.where = where

    def __call__(
        self,
        background: PyTree[Array],
        observation: Observation,
        *,
        key: Key[Array, ""] | None = None,
    ) -> tuple[PyTree[Array], Info]:
        """Return the analysis ensemble, and what there is to say of it.

        Errors that are not independent are whitened first: the observations taken one
        by one are then mixtures, which only a filter without localisation can use.

        Raises:
            ValueError: random order or rotation has no key, or, localised: a leaf to
                update does not lie on the points (leave it out by `where`), the
                errors are not independent, the observation does not say where it is.
        """
        members = count_members(background)
        update, rest = split(background, self.where)
        schur = self.localisation
        leaves, structure = jax.tree.flatten(update)
        levels = [Levels()] * len(leaves)
        shape = ()
        located = None
        if schur is not None:
            check_independent(observation, "A localised EnSRF")
            shape = schur.geometry.shape
            levels = levels_of(schur.vertical, background, update, shape)
            located = schur.locate(observation)
        innovation, anomalies = observe(background, observation)
        unreached = None
        if schur is not None and located is not None:
            unreached = schur.unreached(located, observation.mask.reshape(-1))
        order_key, turn_key = (None, None) if key is None else jr.split(key)
        turn = random_turn(self.rotate, members, anomalies.dtype, turn_key)
        order = jnp.arange(innovation.size)
        if self.shuffle:
            if order_key is None:
                raise ValueError(
                    "`key` is needed for a random order; give one, or shuffle=False."
                )
            order = jr.permutation(order_key, order)

        flat = [flatten(x, len(shape), l) for x, l in zip(leaves, levels, strict=True)]
        before = [centre(x.astype(wide(x.dtype)))[1] for x in flat]
        mask = observation.mask.reshape(-1)
        touched = [jnp.zeros(x.shape[2:], bool) for x in flat]
        still = [jnp.zeros_like(x[0]) for x in before]
        spread = members - 1

        def assimilate(carry, j):
            state, shift, seen, gap, touched = carry
            one = seen[:, j]
            total = jnp.sum(one**2) + spread
            shrink = 1 / (1 + jnp.sqrt(spread / total))
            weights = [jnp.ones((1, 1), one.dtype)] * len(state)
            to_others = jnp.ones((1,), one.dtype)
            if schur is not None and located is not None:
                by_place, by_point = schur.to_points(located, j)
                weights = [
                    by_place[jnp.asarray(l.numbers), None] * by_point[None]
                    for l in levels
                ]
                to_others = schur.to_observations(located, j).astype(one.dtype)

            def correct(x, shift, weight):
                y = one.astype(x.dtype)
                gain = jnp.tensordot(y, x, 1, precision="highest") / total.astype(
                    x.dtype
                )
                gain = gain * weight.astype(x.dtype)[None]
                shift = shift + gain * gap[j].astype(x.dtype)
                less = shrink.astype(x.dtype) * y
                return x - less.reshape(-1, *(1,) * gain.ndim) * gain[None], shift

            corrected = [correct(*x) for x in zip(state, shift, weights, strict=True)]
            state, shift = ([x[i] for x in corrected] for i in (0, 1))
            gain = matmul(one, seen) / total * to_others
            seen = seen - shrink * one[:, None] * gain[None, :]
            gap = gap - gain * gap[j]
            touched = [
                t | ((w > 0) & mask[j]) for t, w in zip(touched, weights, strict=True)
            ]
            return (state, shift, seen, gap, touched), None

        carry = before, still, anomalies, innovation, touched
        (after, shift, seen, _, touched), _ = jax.lax.scan(assimilate, carry, order)

        def finish(leaf, before, after, shift, touched):
            dtype = before.dtype
            inflation = jnp.where(touched, self.inflation.astype(dtype), 1)
            if turn is not None:
                after = jnp.tensordot(turn.astype(dtype), after, 1, precision="highest")
            increment = shift[None] + (inflation[None, None] * after - before)
            wider = leaf.astype(dtype) + increment.reshape(leaf.shape)
            return wider.astype(leaf.dtype)

        parts = zip(leaves, before, after, shift, touched, strict=True)
        analysis = jax.tree.unflatten(structure, [finish(*x) for x in parts])
        number = counts(observation)
        weights = mean_weights(anomalies, innovation)
        info = Info(
            **number,
            chi_square=chi_square(innovation, anomalies, weights, number["used"]),
            degrees_of_freedom=jnp.sum(seen**2) / spread,
            unreached=unreached,
        )
        return eqx.combine(analysis, rest), info
