"""Robust analyses: ask an error law again at the analysis that it led to."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from skyens.assimilation._ensemble import (
    Info,
    Recorded,
    centre,
    predict_members,
    wide,
)
from skyens.observations import Observation


class Reweighted(eqx.Module):
    """An ensemble method whose errors are weighed anew about each of its analyses.

    A Gaussian method weighs a robust error (`StudentT`, `Huber`) by how far the value
    is from the background's mean, and one that is `Heteroscedastic` by what that mean
    predicts. This one repeats the analysis of the same background with the weights
    that the last analysis suggests: iteratively reweighted least squares. Values that
    the others confirm gain weight, gross errors lose it; it converges to the most
    likely state where the operator is linear. With Gaussian errors it is the method.

    No derivative goes through the weights. It takes `iterations` times as long as the
    method.

    Source: Holland & Welsch (1977), Comm. Stat. A 6, 813-827.
    """

    method: Callable
    iterations: int = eqx.field(static=True)

    def __init__(self, method: Callable, iterations: int = 5):
        """Set the method to repeat, and how often to analyse; once is the method.

        Raises:
            ValueError: `iterations` is below 1.
        """
        if iterations < 1:
            raise ValueError(f"`iterations` must be at least 1, got {iterations}.")
        self.method, self.iterations = method, iterations

    def __call__(
        self,
        background: PyTree[Array],
        observation: Observation,
        *,
        key: Key[Array, ""] | None = None,
    ) -> tuple[PyTree[Array], Info]:
        """Return the last analysis and its info, which counts the `iterations`.

        Every analysis gets the same key.

        Raises:
            ValueError: the observation was recorded within a window, so that nothing
                tells what the analysis would show; or as for the method.
        """
        if isinstance(observation.operator, Recorded):
            raise ValueError(
                "`Reweighted` needs to see its analysis, and what was recorded along a "
                "window cannot; use the method itself."
            )

        def shown(ensemble):
            prediction = observation.unwrap(predict_members(ensemble, observation))
            return centre(prediction.astype(wide(prediction.dtype)))[0]

        def analyse(prediction):
            seen = observation.about(prediction)
            return self.method(background, seen, key=key)

        prediction = shown(background)
        shape = eqx.filter_eval_shape(analyse, prediction)
        arrays, fixed = eqx.partition(shape, _is_shape)
        nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), arrays)

        def again(_, carry):
            analysis, info = analyse(carry[0])
            return shown(analysis), eqx.filter((analysis, info), eqx.is_array)

        # One loop compiles the method once.
        _, arrays = jax.lax.fori_loop(0, self.iterations, again, (prediction, nothing))
        analysis, info = eqx.combine(arrays, fixed)
        count = jnp.asarray(self.iterations)
        here = lambda info: (info.iterations, info.method)
        successor = info.method and Reweighted(info.method, self.iterations)
        none = lambda node: node is None or node is info.method
        return analysis, eqx.tree_at(here, info, (count, successor), is_leaf=none)


def _is_shape(leaf: Any) -> bool:
    return isinstance(leaf, jax.ShapeDtypeStruct)
