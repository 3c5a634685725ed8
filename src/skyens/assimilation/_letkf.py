"""The local ensemble transform Kalman filter, on any grid and on the sphere."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from skyens.assimilation._coarse_weights import CoarseWeights
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
from skyens.assimilation._global_update import (
    degrees_of_freedom,
    increment_matrix,
    positive_inflation,
    random_turn,
)
from skyens.assimilation._localisation import Localisation, Moving
from skyens.assimilation._square_root import inverse_root
from skyens.assimilation._transform import (
    Anomalies,
    Decomposition,
    accurate,
    mean_weights,
    svd,
    transform,
    where_accurate,
)
from skyens.assimilation._vertical import Levels, Vertical, flatten, levels_of
from skyens.observations import Observation

_BLOCK_BYTES = 2**24  # what the arrays of a block of points may take
_LARGEST_BLOCK = 256


class LETKF(eqx.Module):
    """Local ensemble transform Kalman filter for fields that end with the points' axes.

    An `ETKF` at every point, which sees the observations near it: their error variances
    are divided by the localisation's taper. All variables of a column share its
    weights, and all its levels, unless a `Vertical` tells them apart. Where no
    observation is in reach, the background comes back as it is, uninflated. With an
    infinite length it is the `ETKF`.

    Points are done in blocks, so that memory holds one block's `(point, neighbour,
    member)` at a time; gradients compute it anew. Square roots are taken by products of
    matrices (`decompose=None`), and in blocks where observations are too precise
    against the ensemble for these by `svd`.

    Source: Hunt et al. (2007), Physica D 230, 112-126.
    """

    localisation: Localisation | Moving
    inflation: Float[Array, ""]
    vertical: Vertical | None
    interpolate: CoarseWeights | None
    rotate: bool = eqx.field(static=True)
    where: Callable[[Any], Any] | None = eqx.field(static=True)
    decompose: Callable[[Anomalies], Decomposition] | None = eqx.field(static=True)

    def __init__(
        self,
        localisation: Localisation | Moving,
        inflation: float | Float[Array, ""] = 1.0,
        rotate: bool = False,
        *,
        where: Callable[[Any], Any] | None = None,
        decompose: Callable[[Anomalies], Decomposition] | None = None,
        vertical: Vertical | None = None,
        interpolate: CoarseWeights | None = None,
    ):
        """Set how to localise, and the rest as for `ETKF`.

        Args:
            localisation: a table for observations that stay, or `Moving`.
            inflation: as for `ETKF`.
            rotate: as for `ETKF`; the rotation is the same everywhere.
            where: as for `ETKF`.
            decompose: None, `gram` or `svd`.
            vertical: weights by vertical distance; each level has an analysis then.
            interpolate: from the points of the localisation, a coarse grid, to those of
                the state.

        Raises:
            ValueError: `interpolate` begins at another grid than the localisation's.
            EquinoxRuntimeError: `inflation` is not above 0.
        """
        coarse = localisation.geometry.shape
        if interpolate is not None and interpolate.coarse != coarse:
            raise ValueError(
                f"`interpolate` begins at points of shape {interpolate.coarse}, the "
                f"localisation has {coarse}."
            )
        self.localisation = localisation
        self.inflation = positive_inflation(inflation)
        self.rotate = rotate
        self.where = where
        self.decompose = decompose
        self.vertical = vertical
        self.interpolate = interpolate

    def __call__(
        self,
        background: PyTree[Array],
        observation: Observation,
        *,
        key: Key[Array, ""] | None = None,
    ) -> tuple[PyTree[Array], Info]:
        """Return the analysis ensemble, and what there is to say of it.

        In the info, `used` counts the observations that a point hears, `unreached`
        those that none does, and `overflow` the neighbours for which a `Moving` table
        had no room. The degrees of freedom are a map over the points: what each local
        analysis takes from its observations, 0 where there are none; with a `Vertical`
        one map for each of its places.

        Raises:
            ValueError: a leaf to update does not lie on the points (leave it out by
                `where`) or levels, the errors of the observations are not independent
                (a mixture of them is nowhere), the localisation was built for another
                number of observations, or as for `ETKF`.
            EquinoxRuntimeError: the observations are not where the localisation was
                built for.
        """
        check_independent(observation, "LETKF")
        members = count_members(background)
        update, rest = split(background, self.where)
        coarse, interpolate = self.localisation.geometry.shape, self.interpolate
        shape = coarse if interpolate is None else interpolate.shape
        levels = levels_of(self.vertical, background, update, shape)
        near = self.localisation.neighbours(observation)
        innovation, anomalies = observe(background, observation)
        dtype = anomalies.dtype
        turn = random_turn(self.rotate, members, dtype, key)

        heard = near.reached
        by_place = None
        if self.vertical is not None:
            by_place = self.vertical.weights(observation).astype(dtype)
            heard = heard & jnp.any(by_place > 0, axis=1)
        number = counts(observation)
        mask = observation.mask.reshape(-1)
        used = jnp.sum(mask & heard)
        unreached, number["used"] = number["used"] - used, used

        # One row for each observation: a neighbour is one piece of memory.
        seen = jnp.concatenate([anomalies, innovation[None]]).T
        weigh = lambda index, taper: _matrices(
            self, seen, mask, by_place, turn, index, taper.astype(dtype)
        )
        size = jnp.dtype(dtype).itemsize
        places = 1 if by_place is None else by_place.shape[1]
        width = near.index.shape[-1]
        bytes_each = size * (width + 4 * members) * (members + 1) * (1 + places)
        table = [x.reshape(-1, width) for x in (near.index, near.taper)]

        def adjust(matrix, ensembles):
            pairs = zip(ensembles, levels, strict=True)
            return [_recombine(matrix, x, level) for x, level in pairs]

        leaves, structure = jax.tree.flatten(update)
        flat = [
            flatten(x, len(shape), one) for x, one in zip(leaves, levels, strict=True)
        ]
        if interpolate is None:

            def analyse(index, taper, *ensembles):
                matrix, freedom = weigh(index, taper)
                return [freedom, *adjust(matrix, ensembles)]

            freedom, *flat = _in_blocks(analyse, bytes_each, [*table], flat)
        else:
            matrices, freedom = _in_blocks(weigh, bytes_each, table, [])

            def spread(index, weight, *ensembles):
                blend = lambda x: jnp.einsum(
                    "pc,pc...->p...", weight, x[index], precision="highest"
                )
                return [blend(freedom), *adjust(blend(matrices), ensembles)]

            bytes_each = 6 * size * members**2 * places
            corners = [interpolate.index, interpolate.weight.astype(dtype)]
            freedom, *flat = _in_blocks(spread, bytes_each, corners, flat)
        analysis = [x.reshape(leaf.shape) for x, leaf in zip(flat, leaves, strict=True)]
        freedom = freedom.T.reshape(*(() if by_place is None else (places,)), *shape)

        said = jnp.where(heard, innovation, 0), jnp.where(heard[None], anomalies, 0)
        weights = mean_weights(said[1], said[0])
        info = Info(
            **number,
            chi_square=chi_square(*said, weights, used),
            degrees_of_freedom=freedom,
            overflow=near.overflow,
            unreached=unreached,
        )
        return eqx.combine(jax.tree.unflatten(structure, analysis), rest), info


def check_independent(observation: Observation, name: str) -> None:
    """Check that errors of different entries are independent.

    Raises:
        ValueError: they are not.
    """
    if not observation.error.independent:
        raise ValueError(
            f"{name} needs independent observation errors, `Diagonal` say, got "
            f"{type(observation.error).__name__}; ETKF takes any."
        )


def _matrices(method, seen, mask, by_place, turn, index, taper):
    """Increment matrices and degrees of freedom, by point and place."""
    near = seen[index]
    weight = taper[:, :, None]
    if by_place is not None:
        weight = weight * by_place[index]
    active = jnp.any(mask[index][:, :, None] & (weight > 0), axis=1)
    if method.decompose is None:
        weights, change, freedom = _accurately(near, weight)
    else:
        weights, change, freedom = _by_decomposition(near, weight, method.decompose)
    make = lambda weights, change, active: increment_matrix(
        weights, change, active, method.inflation, turn
    )
    return jax.vmap(jax.vmap(make))(weights, change, active), freedom


def _by_products(near, weight):
    """Weights, `T - I` and degrees of freedom, by point and place."""
    members = near.shape[-1] - 1
    # The squares Y Y' of tapered anomalies, and Y d as one more column.
    across = jnp.swapaxes(near, 1, 2)[:, None, :members]
    tapered = across * jnp.swapaxes(weight, 1, 2)[:, :, None, :]
    square = matmul(tapered.reshape(len(near), -1, near.shape[1]), near)
    square = square.reshape(len(near), -1, members, members + 1) / (members - 1)
    square, right = square[..., :members], square[..., members:]
    identity = jnp.eye(members, dtype=square.dtype)[None, None]
    root = inverse_root(identity + square)
    weights = matmul(root, matmul(root, right))[..., 0]
    freedom = jnp.sum(matmul(root, square) * root, axis=(-2, -1))
    return (weights, root - identity, freedom), square


def _by_decomposition(near, weight, decompose):
    """As `_by_products`, however precise the observations are."""

    def one(near, weight):
        near = near * _root(weight)[:, None]
        return transform(near[:, :-1].T, near[:, -1], decompose)

    by_places = jax.vmap(one, in_axes=(None, -1))
    weights, change = jax.vmap(by_places)(near, weight)
    return weights, change, jax.vmap(jax.vmap(degrees_of_freedom))(change)


@jax.custom_jvp
def _accurately(near, weight):
    """By products, or by decomposition where one point's condition asks for it."""
    products, square = _by_products(near, weight)
    exact = lambda near, weight: _by_decomposition(near, weight, svd)
    return where_accurate(square, products, exact, near, weight)


@_accurately.defjvp
def _accurately_jvp(primals, tangents):
    products = lambda *inputs: _by_products(*inputs)[0]
    exact = lambda near, weight: _by_decomposition(near, weight, svd)
    slope = lambda function: lambda tangents: jax.jvp(function, primals, tangents)[1]
    _, square = _by_products(*primals)
    moved = jax.lax.cond(accurate(square), slope(products), slope(exact), tangents)
    return _accurately(*primals), moved


def _recombine(matrix, ensemble, levels: Levels):
    """Apply `(point, place, member, member)` to `(member, rest, level, point)`."""
    dtype = wide(ensemble.dtype)
    matrix = matrix[:, jnp.asarray(levels.numbers, jnp.int32)].astype(dtype)
    _, anomalies = centre(ensemble.astype(dtype))
    increment = matmul(matrix, jnp.transpose(anomalies, (3, 2, 0, 1)))
    wider = ensemble.astype(dtype) + jnp.transpose(increment, (2, 3, 1, 0))
    return wider.astype(ensemble.dtype)


def _in_blocks(function, bytes_each, tables, ensembles):
    """Map `function` over blocks of points, first in tables and last in ensembles.

    What it returns has points first where its argument list ends with the tables, last
    in what it makes of ensembles.
    """
    points = len(tables[0])
    most = max(1, min(points, _LARGEST_BLOCK, _BLOCK_BYTES // bytes_each))
    size = max(n for n in range(1, most + 1) if points % n == 0)
    if 4 * size < most:  # no good divisor: fill the last block
        size = -(-points // -(-points // most))
    number = -(-points // size)
    if number == 1:
        return function(*tables, *ensembles)
    fill = number * size - points

    def cut(array, axis):
        pad = [(0, 0)] * array.ndim
        pad[axis] = (0, fill)
        array = jnp.pad(array, pad) if fill else array
        shape = list(array.shape)
        shape[axis : axis + 1] = [number, size]
        return jnp.moveaxis(array.reshape(shape), axis, 0)

    def join(array, axis):
        array = jnp.moveaxis(array, 0, axis)
        shape = list(array.shape)
        shape[axis : axis + 2] = [number * size]
        array = array.reshape(shape)
        return jax.lax.slice_in_dim(array, 0, points, axis=axis)

    x = [cut(t, 0) for t in tables], [cut(e, e.ndim - 1) for e in ensembles]
    block = jax.checkpoint(lambda t, e: function(*t, *e))
    results = jax.lax.map(lambda x: block(*x), x)
    by_point = len(results) - len(ensembles)
    return [join(r, 0) for r in results[:by_point]] + [
        join(r, r.ndim - 2) for r in results[by_point:]
    ]


def _root(taper: Array) -> Array:
    # Double where: the square root must never see the 0 it would differentiate.
    return jnp.where(taper > 0, jnp.sqrt(jnp.where(taper > 0, taper, 1)), 0)
