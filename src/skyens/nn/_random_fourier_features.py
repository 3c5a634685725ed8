"""A network of points that knows waves: it interpolates what other networks smooth."""

import math

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

    Without layers (`depth=0`) it is linear in its head: the weights then follow from
    least squares on `features`, and it is an approximate Gaussian process with the
    covariance `exp(-|scale (x - y)|^2 / 2)`.

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

        def layer(h, of):
            weight, bias = of
            return jnp.tanh(weight @ h + bias), None

        layers = cast(self.weights), cast(self.biases)
        h = jax.lax.scan(layer, self.features(point), layers)[0]
        return cast(self.head) @ h + cast(self.offset)
