"""A network of points that knows waves: it interpolates what other networks smooth."""

import math
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Key

from skyens.nn._blocks import check_sizes
from skyens.nn._precision import at_least_single


class RandomFourierFeatures(eqx.Module):
    """A field as a function of its coordinates, told by waves of random wavenumbers.

    Layers of tanh of a point's `sqrt(2) (cos(B x), sin(B x))`, where B is drawn once
    from a normal distribution and never trained. Networks of coordinates learn long
    waves first and short ones hardly ever, so that their values look right and their
    Laplacian is wrong; with features, all waves up to about `scale` are learned alike.
    It is smooth: differentiate it to get winds or vorticity.

    Without layers (`depth=0`) it is linear in its head, and nothing need be trained:
    `fitted` is the least-squares fit, an approximate Gaussian process (kriging) with
    the covariance `exp(-|scale (x - y)|^2 / 2)`. The wavenumbers are a sample, and
    waves that it lacks are lacking in the field: take several times as many features
    as there are waves that matter. Layers that are trained differ by their training
    too; for what changes little from one field to the next, fit.

    Source: Rahimi & Recht (2007), NeurIPS 20, 1177-1184; Tancik et al. (2020), NeurIPS
    33, 7537-7547.
    """

    frequencies: Float[Array, "wave coordinate"] = eqx.field(
        metadata={"trainable": False}
    )
    weights: Float[Array, "layer width width"]
    biases: Float[Array, "layer width"]
    head: Float[Array, "out width"]
    offset: Float[Array, " out"]

    def __init__(
        self,
        coordinates: int,
        out_size: int = 1,
        *,
        scale: float | tuple[float, ...] = 10.0,
        periods: tuple[float | None, ...] | None = None,
        width: int = 256,
        depth: int = 2,
        key: Key[Array, ""],
    ):
        """Draw wavenumbers and weights.

        Args:
            coordinates: how many numbers say where a point is.
            out_size: how many numbers the field has there.
            scale: standard deviation of the wavenumbers, radians per unit of each
                coordinate: about the shortest wave that matters.
            periods: of each coordinate, in its unit, None where it has none;
                wavenumbers are rounded to whole ones: the field is periodic.
            width: the number of features and of numbers inside, even.
            depth: how many layers, compiled once (a scan); 0 is a linear model.
            key: for wavenumbers and weights.

        Raises:
            ValueError: a size is not positive (`depth` negative), `width` is odd, or
                `scale` or `periods` is not positive or has another length.
        """
        check_sizes(coordinates=coordinates, out_size=out_size, width=width)
        if width % 2 or depth < 0:
            raise ValueError(
                "`width` must be even and `depth` not negative, got "
                f"{width} and {depth}."
            )
        scales = scale if isinstance(scale, tuple) else (scale,) * coordinates
        periods = (None,) * coordinates if periods is None else periods
        for name, given in (("scale", scales), ("periods", periods)):
            positive = all(value is None or value > 0 for value in given)
            if len(given) != coordinates or not positive:
                raise ValueError(
                    f"`{name}` must be positive, one for each of {coordinates} "
                    f"coordinates, got {given}."
                )
        wave_key, layer_key, head_key = jr.split(key, 3)
        waves = jr.normal(wave_key, (width // 2, coordinates), float)
        waves = waves * jnp.asarray(scales, float)[None]
        longest = np.array([2 * np.pi / p if p else np.nan for p in periods])[None]
        whole = jnp.round(waves / longest) * longest
        self.frequencies = jnp.where(np.isnan(longest), waves, whole)
        draw = lambda key, *shape: jr.normal(key, shape, float) / math.sqrt(width)
        self.weights = draw(layer_key, depth, width, width)
        self.biases = jnp.zeros((depth, width), float)
        self.head = draw(head_key, out_size, width)
        self.offset = jnp.zeros(out_size, float)

    def features(self, point: Float[Array, " coordinate"]) -> Float[Array, " width"]:
        """Return the waves at a point, of mean square 1, in the point's dtype.

        Raises:
            ValueError: the point has another number of coordinates.
        """
        if point.shape != self.frequencies.shape[1:]:
            raise ValueError(
                f"`point` must have the shape {self.frequencies.shape[1:]}, got "
                f"{point.shape}; map over points by `jax.vmap`."
            )
        # The phase in single precision at least: half has three digits.
        wide = at_least_single(point.dtype)
        phase = jnp.einsum(
            "wc,c->w",
            self.frequencies.astype(wide),
            point.astype(wide),
            precision=jax.lax.Precision.HIGHEST,
        )
        waves = jnp.concatenate([jnp.cos(phase), jnp.sin(phase)])
        return (math.sqrt(2) * waves).astype(point.dtype)

    def __call__(self, point: Float[Array, " coordinate"]) -> Float[Array, " out"]:
        """Return the field at a point, in its dtype.

        Raises:
            ValueError: the point has another number of coordinates.
        """
        cast = lambda leaf: leaf.astype(point.dtype)
        return cast(self.head) @ self._last(point) + cast(self.offset)

    def fitted(
        self,
        points: Float[Array, "point coordinate"],
        values: Float[Array, "point out"],
        *,
        ridge: float | Float[Array, ""] = 1e-9,
    ) -> "RandomFourierFeatures":
        """Return the network whose head and offset fit values at points best.

        Least squares on what reaches the head, with a penalty on the head's weights
        (ridge regression). Many fields at the same points, one for each output, cost
        hardly more than one, and what is fitted is linear in the values: differences
        of fields are as good as the fields. Choose `scale` and `ridge` by points that
        are held out.

        Args:
            points: where the field is known.
            values: the field there.
            ridge: variance of the values' noise over that of the field (kriging's
                nugget), not negative; rounding of the dtype counts as noise too.

        Raises:
            ValueError: there are no points, or shapes do not fit the network's.
            EquinoxRuntimeError: `ridge` is negative.
        """
        count, outs = len(points), self.offset.shape
        if count == 0 or values.shape != (count, *outs):
            raise ValueError(
                f"`values` must have the shape (points, {outs[0]}) with at least one "
                f"point, got {values.shape} for {count} points."
            )
        kept = self.head.dtype
        wide = at_least_single(points.dtype)
        last = jax.vmap(self._last)(points.astype(wide))
        middle, level = jnp.mean(last, axis=0), jnp.mean(values.astype(wide), axis=0)
        last, above = last - middle[None], values.astype(wide) - level[None]
        ridge = jnp.asarray(ridge, wide)
        ridge = eqx.error_if(ridge, ~(ridge >= 0), "`ridge` must not be negative.")
        product = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
        # The smaller of both normal matrices; both have the same solution.
        dual = count < last.shape[1]
        gram = product(last, last.T) if dual else product(last.T, last)
        variance = jnp.sum(last**2) / count
        least = len(gram) * jnp.finfo(wide).eps
        noise = jnp.maximum(ridge, least) * jnp.where(variance > 0, variance, 1)
        factor = jax.scipy.linalg.cho_factor(
            gram + noise * jnp.eye(len(gram), dtype=wide)
        )
        if dual:
            head = product(last.T, jax.scipy.linalg.cho_solve(factor, above)).T
        else:
            head = jax.scipy.linalg.cho_solve(factor, product(last.T, above)).T
        offset = level - product(head, middle)
        where = lambda net: (net.head, net.offset)
        return eqx.tree_at(where, self, (head.astype(kept), offset.astype(kept)))

    def _last(self, point):
        """What reaches the head."""

        def layer(h, of):
            weight, bias = of
            return jnp.tanh(weight @ h + bias), None

        cast = lambda leaf: leaf.astype(point.dtype)
        layers = cast(self.weights), cast(self.biases)
        return jax.lax.scan(layer, self.features(point), layers)[0]
