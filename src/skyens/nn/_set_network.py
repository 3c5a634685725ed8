"""A few members in, as many out as wanted: a network that sees a set of fields."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Key

from skyens.nn._blocks import check_sizes
from skyens.nn._condition import Condition
from skyens.nn._convolution import Convolution
from skyens.nn._domain import Domain
from skyens.nn._embedding import Scalar
from skyens.nn._pointwise import Pointwise


class SetEncoder(eqx.Module):
    """Fields that tell a network what a set of members, in any order, says together.

    At each point: their mean, their standard deviation (that of the members given, 0
    for one), and learned features. Each member, its departure from the mean and their
    neighbourhood make values and scores, and the features are means of the values over
    the members with the softmax of the scores as weights. Any number of members does.

    Source: Zaheer et al. (2017), NeurIPS 30, arXiv:1703.06114, and Lee et al. (2019),
    ICML, PMLR 97, 3744-3753 (attention over sets); for weather, Li et al. (2024), Sci.
    Adv. 10, eadk4489 (SEEDS).
    """

    see: Convolution
    say: Pointwise
    domain: Domain = eqx.field(static=True)
    channels: int = eqx.field(static=True)
    features: int = eqx.field(static=True)

    def __init__(
        self, domain: Domain, channels: int, features: int = 16, *, key: Key[Array, ""]
    ):
        """Draw the weights.

        Args:
            domain: a `Plane` or a `Grid`.
            channels: of each member.
            features: how many learned features.
            key: for the weights.

        Raises:
            ValueError: a size is not positive.
        """
        check_sizes(channels=channels, features=features)
        self.domain, self.channels, self.features = domain, channels, features
        see, say = jr.split(key)
        self.see = Convolution(3 * channels, 2 * features, gain=2.0, key=see)
        self.say = Pointwise(2 * features, 2 * features, key=say)

    @property
    def field_channels(self) -> int:
        """How many channels the fields have."""
        return 2 * self.channels + self.features

    def __call__(
        self,
        members: Float[Array, "member channel latitude longitude"],
        where: Bool[Array, " same"] | None = None,
    ) -> Float[Array, "feature latitude longitude"]:
        """Return the fields in the dtype of `members`.

        Args:
            members: fields of order one on the domain.
            where: which of them exist; None is all. With none at all, the fields are
                those of one member that is 0. What does not exist changes neither value
                nor gradient, and may be NaN.

        Raises:
            ValueError: there is no member, or the members have another shape than the
                encoder was made for.
        """
        shape = (self.channels, *self.domain.shape)
        if members.ndim != 4 or members.shape[1:] != shape or not members.shape[0]:
            raise ValueError(
                f"`members` must be (member, {', '.join(map(str, shape))}) with at "
                f"least one member, got {members.shape}."
            )
        there = jnp.ones(members.shape[0], bool) if where is None else where
        if there.shape != members.shape[:1]:
            raise ValueError(
                f"`where` must have one entry for each of the {members.shape[0]} "
                f"members, got {there.shape}."
            )
        there = there[:, None, None, None]
        members = jnp.where(there, members, 0)
        # None at all: members of 0, each of the same weight.
        counted = there | ~there.any(keepdims=True)
        weight = counted.astype(members.dtype)
        weight = weight / weight.sum(keepdims=True)
        mean = (weight * members).sum(0, keepdims=True)
        departure = jnp.where(there, members - mean, 0)
        variance = (weight * departure**2).sum(0)
        # Double where: the square root must never see the 0 it would differentiate.
        spread = jnp.sqrt(jnp.where(variance > 0, variance, 1))
        spread = jnp.where(variance > 0, spread, 0)

        def look(departure):
            seen = jnp.concatenate([mean[0], departure, spread])
            return jnp.split(self.say(jax.nn.silu(self.see(seen, self.domain))), 2)

        value, score = jax.vmap(look)(departure)
        score = jnp.where(counted, score, -jnp.inf)
        learned = (jax.nn.softmax(score, axis=0) * value).sum(0)
        return jnp.concatenate([mean[0], spread, learned])


class SetNetwork(eqx.Module):
    """A network that is conditioned on `condition.members`, a set of fields.

    Trained to denoise one member of a large ensemble, given a few others, it draws as
    many more as wanted; given reanalyses for targets instead, it repairs a biased
    ensemble too. The other parts of the condition go to the inner network as they are.

    The members are read once for all steps if `encoder(members)` is given as fields to
    `network` itself.
    """

    network: Callable
    encoder: SetEncoder

    def __init__(self, network: Callable, encoder: SetEncoder):
        """Join a network and an encoder.

        Args:
            network: such as `UNet` or `Transformer`, made with `field_channels` of at
                least `encoder.field_channels`; the rest are for `condition.fields`,
                which come first.
            encoder: of the members.

        Raises:
            ValueError: the network takes fewer field channels, or has another domain.
        """
        if network.taken.fields < encoder.field_channels:
            raise ValueError(
                f"`network` must be made with `field_channels` of at least "
                f"{encoder.field_channels} (`encoder.field_channels`), got "
                f"{network.taken.fields}."
            )
        if network.domain != encoder.domain:
            raise ValueError(
                f"`network` and `encoder` must share their domain, got "
                f"{network.domain} and {encoder.domain}."
            )
        self.network, self.encoder = network, encoder

    def __call__(
        self,
        x: Float[Array, "channel latitude longitude"],
        level: Scalar | None = None,
        *,
        condition: Condition | None = None,
    ) -> Float[Array, "out latitude longitude"]:
        """Return the output for one input, in its dtype.

        Without members, or with none that exist, the network is told what one member
        that is 0 everywhere would say.

        Raises:
            ValueError: a part of the condition has another shape than the network and
                the encoder were made for.
        """
        given = Condition() if condition is None else condition
        if given.members is None and given.where is not None:
            raise ValueError("`condition.where` is given without `condition.members`.")
        none = jnp.zeros((1, self.encoder.channels, *self.encoder.domain.shape))
        members = none if given.members is None else given.members
        told = self.encoder(members.astype(x.dtype), given.where)
        own = self.network.taken.fields - self.encoder.field_channels
        shape = (own, *self.encoder.domain.shape)
        fields = jnp.zeros(shape) if given.fields is None else given.fields
        if fields.shape != shape:
            raise ValueError(
                f"`condition.fields` must be (channel, latitude, longitude) = {shape} "
                f"beside the members, got {fields.shape}."
            )
        fields = jnp.concatenate([fields.astype(x.dtype), told])
        inner = Condition(fields, given.vector, given.tokens)
        return self.network(x, level, condition=inner)
