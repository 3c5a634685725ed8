"""The ensemble Kalman smoother: each analysis also updates the analyses before it."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from skyens.assimilation._adaptive_inflation import AdaptiveInflation
from skyens.assimilation._cycle import Cycle
from skyens.assimilation._ensemble import Recorded, as_pytree, centre, count_members
from skyens.assimilation._global_update import positive_inflation
from skyens.assimilation._inflation import Inflated
from skyens.assimilation._window import layers
from skyens.observations import Observation


class EnKS(eqx.Module):
    """Ensemble Kalman smoother of fixed lag, over any filter of ensembles.

    A filter with memory: it keeps the last `lag` analyses, and each new observation
    updates them with the weights that update the present. That is the filter of the
    state with its past appended, so every way to filter is one to smooth: `ETKF`,
    `EnKF`, a localised filter.

    The analyses of a cycle are those of the filter. What leaves the memory, the
    ensemble of `lag` analyses ago, has seen everything up to now: it is
    `info.smoothed`, and `smoothed(result)` puts a cycle's in line. Entries that are
    older than the cycle are copies of the initial ensemble. A cycle's `infos` hold the
    memory after each analysis; under `jax.jit` they cost nothing unless returned.

        method = EnKS(ETKF(), 12, ensemble, inflation=1.08)
        result = cycle(step, method, ensemble, observe, data, key=key)
        means = smoothed(result)

    Source: Evensen & van Leeuwen (2000), Mon. Wea. Rev. 128, 1852-1867.
    """

    method: Callable[..., tuple[Any, Any]]
    inflation: Float[Array, ""]
    past: PyTree[Array]  # (member, lag, *state), the newest first
    reduce: Callable[[Any], Any] = eqx.field(static=True)

    def __init__(
        self,
        method: Callable[..., tuple[Any, Any]],
        lag: int,
        ensemble0: PyTree[Array],
        *,
        inflation: float | Float[Array, ""] = 1.0,
        reduce: Callable[[Any], Any] | None = None,
    ):
        """Set what to smooth, and how far back.

        Args:
            method: the filter, without inflation: its own would inflate the past again
                at each analysis.
            lag: number of analyses to keep.
            ensemble0: the initial ensemble, any pytree with a leading member axis.
            inflation: factor of the present analysis' anomalies, above 0.
            reduce: `info.smoothed` is `reduce(ensemble)`, the mean say; None for whole
                ensembles.

        Raises:
            ValueError: `lag` is below 1, `method` is or holds `Inflated` or
                `AdaptiveInflation`, or `ensemble0` has fewer than two members.
            EquinoxRuntimeError: `inflation` is not above 0, or the method has one that
                is not 1.
        """
        if lag < 1:
            raise ValueError(f"`lag` must be at least 1, got {lag}.")
        inside = layers(method)
        for layer in inside:
            if isinstance(layer, Inflated | AdaptiveInflation):
                name = type(layer).__name__
                raise ValueError(
                    f"`method` is `{name}`, which would inflate the past again at each "
                    f"analysis; use {name}(EnKS(...), ...) or EnKS(..., inflation=...)."
                )
        count_members(ensemble0)
        own = getattr(inside[-1], "inflation", None)
        self.inflation = positive_inflation(inflation)
        if eqx.is_array(own):
            self.inflation = eqx.error_if(
                self.inflation,
                jnp.any(own != 1),
                "the `inflation` of `method` must be 1, or it inflates the past again "
                "at each analysis; use EnKS(..., inflation=...).",
            )
        self.method = as_pytree(method)
        copies = lambda leaf: jnp.repeat(jnp.asarray(leaf)[:, None], lag, axis=1)
        self.past = jax.tree.map(copies, ensemble0)
        self.reduce = (lambda ensemble: ensemble) if reduce is None else reduce

    def __call__(
        self,
        background: PyTree[Array],
        observation: Observation,
        *,
        key: Key[Array, ""] | None = None,
    ) -> tuple[PyTree[Array], Any]:
        """Return the filter's analysis, and its info with `smoothed` and `method`.

        Raises:
            ValueError: `background` has not the structure or shapes of the initial
                ensemble, or as the filter does.
        """
        lag = jax.tree.leaves(self.past)[0].shape[1]
        try:
            everything = jax.tree.map(
                lambda now, past: jnp.concatenate([now[:, None], past], axis=1),
                background,
                self.past,
            )
        except (TypeError, ValueError) as error:
            raise ValueError(
                "`background` is not like the `ensemble0` that EnKS was made with."
            ) from error
        # Where predictions were recorded before, no operator looks at the state.
        if not isinstance(observation.operator, Recorded):
            present = lambda state: jax.tree.map(lambda leaf: leaf[0], state)
            observation = observation.pullback(present)
        updated, info = self.method(everything, observation, key=key)
        at = lambda age: jax.tree.map(lambda leaf: leaf[:, age], updated)
        active = info.used > 0
        analysis = jax.tree.map(lambda leaf: self._inflate(leaf, active), at(0))
        past = jax.tree.map(
            lambda now, leaf: jnp.concatenate([now[:, None], leaf[:, 1:lag]], axis=1),
            analysis,
            updated,
        )
        method = self.method if info.method is None else info.method
        successor = eqx.tree_at(
            lambda smoother: (smoother.method, smoother.past), self, (method, past)
        )
        info = eqx.tree_at(
            lambda info: (info.method, info.smoothed),
            info,
            (successor, self.reduce(at(lag))),
            is_leaf=lambda node: node is None,
        )
        return analysis, info

    def _inflate(self, leaf, active):
        if not eqx.is_inexact_array(leaf):
            return leaf
        _, anomalies = centre(leaf)
        excess = jnp.where(active, self.inflation - 1, 0).astype(leaf.dtype)
        return leaf + excess * anomalies


def smoothed(result: Cycle) -> PyTree[Any]:
    """Return the smoothed analyses of a cycle with `EnKS`, in order of time.

    The one of time t has seen the data up to `t + lag`, or up to the end. They are
    whole ensembles, or what the smoother's `reduce` makes of them.

    Raises:
        ValueError: the cycle's method is not `EnKS`.
    """
    smoother = result.method
    if not isinstance(smoother, EnKS):
        raise ValueError(
            f"`smoothed` takes a cycle with EnKS, got {type(smoother).__name__}."
        )
    # From here on nothing came after: the last analyses, the oldest first.
    waiting = jax.tree.map(lambda leaf: jnp.flip(leaf, 1), smoother.past)
    kept = jax.vmap(smoother.reduce, in_axes=1)(waiting)
    times = result.infos.used.shape[0]
    join = lambda left, right: jnp.concatenate([left, right])[-times:]
    return jax.tree.map(join, result.infos.smoothed, kept)
