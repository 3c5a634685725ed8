"""Attention: every place looks at all places, or at a set of tokens."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Key

from skyens.nn._domain import Domain, Plane
from skyens.nn._pointwise import ConditionalLayerNorm, GatedMLP, Pointwise
from skyens.nn._precision import at_least_single

Heads = Float[Array, "head feature place"]


class Rotary(eqx.Module):
    """Turn queries and keys by where they stand: products see differences of place.

    Pairs of features turn with the longitude at whole wavenumbers, so that the globe
    closes; as many turn with the latitude. Wavenumbers rise in geometric steps up to
    what the grid resolves. A plane's axes are taken for circles where they are
    periodic and for half circles where not.

    Source: Su et al. (2024), Neurocomputing 568, 127063, with angles on the globe for
    positions.
    """

    domain: Domain = eqx.field(static=True)
    patch: int = eqx.field(static=True, default=1)

    def __call__(self, x: Heads) -> Heads:
        """Return `x`, whose features are a multiple of 4, turned."""
        pairs = x.shape[1] // 2
        angle = self.angles(pairs)
        cosine, sine = (jnp.asarray(f(angle), x.dtype)[None] for f in (np.cos, np.sin))
        one, two = x[:, :pairs], x[:, pairs:]
        turned = [one * cosine - two * sine, one * sine + two * cosine]
        return jnp.concatenate(turned, axis=1)

    def angles(self, pairs: int) -> np.ndarray:
        """Return the angle of each pair at each patch, radians, `(pair, place)`."""
        north, east = (
            self._along(axis, pairs // 2) for axis in range(len(self.domain.shape))
        )
        shape = pairs // 2, north.shape[1], east.shape[1]
        north = np.broadcast_to(north[:, :, None], shape)
        east = np.broadcast_to(east[:, None], shape)
        return np.concatenate([north, east]).reshape(pairs, -1)

    def _along(self, axis: int, pairs: int) -> np.ndarray:
        """Return the angles along one axis, `(pair, patch)`."""
        size = self.domain.shape[axis]
        if isinstance(self.domain, Plane):
            closed = self.domain.periodic[axis]
            place = (2 if closed else 1) * np.pi * np.arange(size) / size
        else:
            closed = axis == 1
            place = np.deg2rad((self.domain.latitude, self.domain.longitude)[axis])
        # The last patch of rows may be filled up from beyond the pole: not counted.
        starts = range(0, size, self.patch)
        centre = np.array([place[i : i + self.patch].mean() for i in starts])
        wave = np.geomspace(1, max(1, len(starts) // (2 if closed else 1)), pairs)
        return np.outer(np.round(wave) if closed else wave, centre)


class Attention(eqx.Module):
    """Each place takes the mean of values, weighted by how its query fits their keys.

    Queries and keys have unit mean square, so that no logit runs away; each head has a
    learned sharpness.

    Source: Vaswani et al. (2017), NeurIPS 30; Dehghani et al. (2023), ICML, PMLR 202,
    7480-7512 (normalised queries and keys).
    """

    query: Pointwise
    key: Pointwise
    value: Pointwise
    out: Pointwise
    sharpness: Float[Array, " head"]
    heads: int = eqx.field(static=True)

    def __init__(self, width: int, source: int, heads: int, *, key: Key[Array, ""]):
        """Draw the weights for `width` channels that look at `source` channels.

        Raises:
            ValueError: `width` is not 4 times `heads` times a whole number.
        """
        if heads < 1 or width % (4 * heads):
            raise ValueError(
                f"the width must be a multiple of 4 * heads, got {width} and "
                f"heads = {heads}."
            )
        keys = jr.split(key, 4)
        self.query = Pointwise(width, width, key=keys[0])
        self.key = Pointwise(source, width, key=keys[1])
        self.value = Pointwise(source, width, key=keys[2])
        self.out = Pointwise(width, width, gain=0.1, key=keys[3])
        self.sharpness, self.heads = jnp.ones(heads), heads

    def __call__(
        self,
        x: Float[Array, "channel latitude longitude"],
        source: Float[Array, "other row column"],
        rotate: Callable[[Heads], Heads] | None = None,
    ) -> Float[Array, "channel latitude longitude"]:
        """Return what each place of `x` gathers from all places of `source`."""
        split = lambda f: f.reshape(self.heads, f.shape[0] // self.heads, -1)
        query, key = (_unit(split(f)) for f in (self.query(x), self.key(source)))
        if rotate is not None:
            query, key = rotate(query), rotate(key)
        sharpness = self.sharpness.astype(x.dtype)[:, None, None]
        scale = sharpness / float(np.sqrt(query.shape[1]))
        logits = jnp.einsum("hdq,hdk->hqk", query * scale, key)
        # Weights of half precision would lose the sum they are divided by.
        wide = logits.astype(at_least_single(x.dtype))
        weights = jax.nn.softmax(wide, axis=-1).astype(x.dtype)
        gathered = jnp.einsum("hqk,hdk->hdq", weights, split(self.value(source)))
        return self.out(gathered.reshape(x.shape))


class AttentionBlock(eqx.Module):
    """Look around, look at the tokens, and think: a layer of a transformer.

    Source: Peebles & Xie (2023), ICCV, 4195-4205, arXiv:2212.09748.
    """

    norm: ConditionalLayerNorm
    attend: Attention
    token_norm: ConditionalLayerNorm | None
    attend_tokens: Attention | None
    mlp_norm: ConditionalLayerNorm
    mlp: GatedMLP

    def __init__(
        self,
        width: int,
        context: int,
        *,
        heads: int,
        token_size: int = 0,
        key: Key[Array, ""],
    ):
        """Draw the weights.

        Args:
            width: channels, a multiple of 4 `heads`.
            context: channels of the context.
            heads: attention heads.
            token_size: features of the tokens; 0 is none.
            key: for the weights.
        """
        here, there, mlp = jr.split(key, 3)
        self.norm = ConditionalLayerNorm(width, context)
        self.attend = Attention(width, width, heads, key=here)
        self.token_norm = self.attend_tokens = None
        if token_size:
            self.token_norm = ConditionalLayerNorm(width, context)
            self.attend_tokens = Attention(width, token_size, heads, key=there)
        self.mlp_norm = ConditionalLayerNorm(width, context)
        self.mlp = GatedMLP(width, 2 * width, width, gain=0.1, key=mlp)

    def __call__(
        self,
        x: Float[Array, "channel latitude longitude"],
        context: Float[Array, "context 1 1"],
        tokens: Float[Array, "token feature"],
        rotate: Callable[[Heads], Heads],
    ) -> Float[Array, "channel latitude longitude"]:
        """Return the changed channels."""
        y = self.norm(x, context)
        x = x + self.attend(y, y, rotate)
        if self.attend_tokens is not None and self.token_norm is not None:
            y = self.token_norm(x, context)
            x = x + self.attend_tokens(y, tokens.T[..., None])
        return x + self.mlp(self.mlp_norm(x, context))


def _unit(x: Heads) -> Heads:
    """Return `x` with mean square 1 over the features of each head."""
    wide = x.astype(at_least_single(x.dtype))
    power = jnp.mean(wide**2, axis=1, keepdims=True)
    return (wide * jax.lax.rsqrt(power + 1e-6)).astype(x.dtype)
