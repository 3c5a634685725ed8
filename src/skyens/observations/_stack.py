"""Several observations as one."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key, PyTree, Scalar

from skyens.observations._errors import Error
from skyens.observations._observation import Observation, check_prediction


def stack(observations: Sequence[Observation]) -> Observation:
    """Return one observation of all that several sources see of a state.

    Values, masks, what was rejected and coordinates are flattened in C order and follow
    each other; a coordinate that one source lacks is NaN there. Operators stand side by
    side and see the same state. Errors of different sources are independent of each
    other; entries are independent if they are so in every source.

    It works on observations of one time. For those of a window, which have a leading
    axis of times, `jax.vmap(lambda a, b: stack([a, b]))(stations, soundings)`.

    Raises:
        ValueError: there is nothing to stack.
    """
    if not observations:
        raise ValueError("`observations` is empty: there is nothing to stack.")
    shapes = tuple(one.value.shape for one in observations)
    dtype = _widest([one.value.dtype for one in observations])
    flat = lambda arrays: jnp.concatenate([array.reshape(-1) for array in arrays])
    names = sorted({name for one in observations for name in one.coordinates or {}})

    def whereabouts(name):
        known = [(one.coordinates or {}).get(name) for one in observations]
        dtype = _widest([where.dtype for where in known if where is not None])
        fill = lambda shape: jnp.full(shape, jnp.nan, dtype)
        arrays = zip(known, shapes, strict=True)
        return flat([fill(s) if k is None else k.astype(dtype) for k, s in arrays])

    period = None
    if any(one.period is not None for one in observations):
        # An infinite one is none.
        period = flat(
            [
                jnp.full(one.value.shape, jnp.inf, dtype)
                if one.period is None
                else one.period.astype(dtype)
                for one in observations
            ]
        )
    return Observation(
        flat([one.value.astype(dtype) for one in observations]),
        Stacked(tuple(one.operator for one in observations), shapes),
        StackedError(tuple(one.error for one in observations), shapes),
        flat([one.mask for one in observations]),
        {name: whereabouts(name) for name in names} or None,
        rejected=flat([one.rejected for one in observations]),
        period=period,
    )


class Stacked(eqx.Module):
    """See the same state through several operators, side by side: a flat array."""

    operators: tuple[Callable, ...]
    shapes: tuple[tuple[int, ...], ...] = eqx.field(static=True)

    def __call__(self, state: PyTree[Any]) -> Float[Array, "observation"]:
        """Return what the operators return, flattened in C order.

        Raises:
            ValueError: one returns another shape than its value has, or what is not
                real.
        """
        seen = [
            check_prediction(operator(state), shape).reshape(-1)
            for operator, shape in zip(self.operators, self.shapes, strict=True)
        ]
        dtype = _widest([part.dtype for part in seen])
        return jnp.concatenate([part.astype(dtype) for part in seen])


class StackedError(eqx.Module):
    """The errors of several sources, independent of each other.

    Its residuals are flat: those of one source after those of another. It depends on
    the prediction where one of its parts does, and has for Gaussian law the parts'.
    """

    errors: tuple[Error, ...]
    shapes: tuple[tuple[int, ...], ...] = eqx.field(static=True)

    @property
    def independent(self) -> bool:
        """Whether all parts are."""
        return all(error.independent for error in self.errors)

    @property
    def covariance(self) -> Float[Array, "entry entry"]:
        """The whole matrix, of the square of all entries: for few of them.

        Raises:
            ValueError: a part is neither independent nor has it a covariance.
        """
        whole = []
        for error, shape in zip(self.errors, self.shapes, strict=True):
            ones = jnp.ones(shape)
            if (matrix := getattr(error, "covariance", None)) is not None:
                whole.append(matrix)
            elif error.independent:
                white = error.whiten(ones, jnp.ones(shape, bool))
                whole.append(jnp.diag(white.reshape(-1) ** -2))
            else:
                raise ValueError(f"a {type(error).__name__} has no `covariance`.")
        dtype = _widest([matrix.dtype for matrix in whole])
        return jax.scipy.linalg.block_diag(*(m.astype(dtype) for m in whole))

    def at(self, prediction: Float[Array, "entry"]) -> "StackedError":
        """Return the law where this is predicted: of each part that depends on it."""
        parts = zip(self.errors, self._split(prediction), strict=True)
        laws = tuple(
            error if (at := getattr(error, "at", None)) is None else at(part)
            for error, part in parts
        )
        return StackedError(laws, self.shapes)

    def gaussian(
        self, residual: Float[Array, "entry"], mask: Bool[Array, "entry"]
    ) -> "StackedError":
        """Return the Gaussian law of each part that has one of its own."""
        parts = zip(self.errors, self._split(residual), self._split(mask), strict=True)
        laws = tuple(
            error
            if (gaussian := getattr(error, "gaussian", None)) is None
            else gaussian(part, keep)
            for error, part, keep in parts
        )
        return StackedError(laws, self.shapes)

    def whiten(
        self, residual: Float[Array, "entry"], mask: Bool[Array, "entry"]
    ) -> Float[Array, "entry"]:
        """Return the parts' whitened residuals, 0 where `mask` is False.

        Raises:
            ValueError: the residual has not the size of all parts.
        """
        parts = zip(self.errors, self._split(residual), self._split(mask), strict=True)
        return jnp.concatenate(
            [error.whiten(part, keep).reshape(-1) for error, part, keep in parts]
        )

    def log_prob(
        self, residual: Float[Array, "entry"], mask: Bool[Array, "entry"]
    ) -> Scalar:
        """Return the sum of the parts' log-densities, over what `mask` keeps."""
        parts = zip(self.errors, self._split(residual), self._split(mask), strict=True)
        densities = [error.log_prob(part, keep) for error, part, keep in parts]
        return jnp.sum(jnp.stack(densities))

    def sample(
        self, prediction: Float[Array, "entry"], *, key: Key[Array, ""]
    ) -> Float[Array, "entry"]:
        """Return the parts' samples, each by its own key, in the prediction's dtype."""
        keys = jax.random.split(key, len(self.errors))
        parts = zip(self.errors, self._split(prediction), keys, strict=True)
        return jnp.concatenate(
            [error.sample(part, key=key).reshape(-1) for error, part, key in parts]
        )

    def _split(self, flat):
        ends = np.cumsum([0, *(int(np.prod(shape)) for shape in self.shapes)])
        if flat.shape != (ends[-1],):
            raise ValueError(
                f"the stacked errors are of {ends[-1]} entries, got an array of shape "
                f"{flat.shape}."
            )
        pieces = [flat[begin:end] for begin, end in pairwise(ends.tolist())]
        return [p.reshape(s) for p, s in zip(pieces, self.shapes, strict=True)]


def _widest(dtypes: Sequence[np.dtype]) -> np.dtype:
    """The first of the dtypes that have most bits."""
    return max(dtypes, key=lambda dtype: jnp.finfo(dtype).bits)
