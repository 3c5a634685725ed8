"""Background covariances of an ensemble, localised, and their sum with static ones."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from skyens.assimilation._background_covariance import (
    BackgroundCovariance,
    precision,
)
from skyens.assimilation._ensemble import centre, count_members


class SharedCorrelation(eqx.Module):
    """A localisation that all variables and levels share: one field for all of them.

    It is drawn by `correlation` on the last `axes` axes, which all leaves of a state
    have in common, and is the same along the others.
    """

    correlation: BackgroundCovariance
    axes: int = eqx.field(static=True)

    def __init__(self, correlation: BackgroundCovariance, axes: int = 2):
        """Set the correlation of one field, and how many axes that has."""
        self.correlation, self.axes = correlation, axes

    def control(self, state: PyTree[Array]) -> PyTree[Array]:
        """Return zeros, the control variables of one field.

        Raises:
            ValueError: the leaves differ in these last axes.
        """
        return self.correlation.control(self._field(state))

    def root(self, control: PyTree[Array], state: PyTree[Array]) -> PyTree[Array]:
        """Return the field, at every variable and level."""
        field = self.correlation.root(control, self._field(state))

        def spread(leaf):
            lead = (1,) * (leaf.ndim - self.axes)
            return jnp.broadcast_to(field.reshape(lead + field.shape), leaf.shape)

        return jax.tree.map(spread, state)

    def _field(self, state):
        leaves = jax.tree.leaves(state)
        shapes = {leaf.shape[max(leaf.ndim - self.axes, 0) :] for leaf in leaves}
        if len(shapes) != 1 or len(shape := next(iter(shapes))) != self.axes:
            raise ValueError(
                f"all leaves must share their last {self.axes} axes, got {shapes}."
            )
        return jnp.zeros(shape, precision(state))


class EnsembleCovariance(eqx.Module):
    """The sample covariance of an ensemble, localised by a correlation.

    `B = C o (A'A / (member - 1))`, entry by entry, A the anomalies. Its root is that of
    the alpha control variables: `sum_k a_k * (C^1/2 v_k) / (member - 1)^1/2`, so C may
    be anything that has a root: a `DenseCovariance` of Gaspari-Cohn values, a
    `SpectralCovariance` with the `gaspari_cohn_spectrum`. Without one, there is one
    control variable for each member, and no increment outside their span.

    Source: Lorenc (2003), Quart. J. Roy. Meteor. Soc. 129, 3183-3203; Buehner (2005),
    ibid. 131, 1013-1043.
    """

    anomalies: PyTree[Array]
    localisation: BackgroundCovariance | None

    def __init__(
        self, ensemble: PyTree[Array], localisation: BackgroundCovariance | None = None
    ):
        """Take the covariance of an `ensemble`, a state with a leading member axis.

        Raises:
            ValueError: there are fewer than two members.
        """
        members = count_members(ensemble)
        scale = (members - 1) ** -0.5
        self.anomalies = jax.tree.map(lambda leaf: scale * centre(leaf)[1], ensemble)
        self.localisation = localisation

    def control(self, state: PyTree[Array]) -> PyTree[Array]:
        """Return zeros, one or a whole control of the localisation for each member.

        Raises:
            ValueError: the state's shapes are not those of the members.
        """
        shapes = jax.tree.map(lambda leaf: leaf.shape[1:], self.anomalies)
        wanted = jax.tree.map(lambda leaf: leaf.shape, state)
        if shapes != wanted:
            raise ValueError(f"the ensemble has shapes {shapes}, the state {wanted}.")
        members = len(jax.tree.leaves(self.anomalies)[0])
        if self.localisation is None:
            return jnp.zeros(members, precision(state))
        one = self.localisation.control(state)
        return jax.tree.map(lambda v: jnp.zeros((members, *v.shape), v.dtype), one)

    def root(self, control: PyTree[Array], state: PyTree[Array]) -> PyTree[Array]:
        """Return the members' anomalies, weighted and added up."""
        if self.localisation is None:
            weigh = lambda leaf: jnp.tensordot(
                control, leaf.astype(control.dtype), 1, precision="highest"
            )
            return jax.tree.map(weigh, self.anomalies)
        localise = self.localisation.root
        weights = jax.vmap(lambda v: localise(v, state))(control)
        add = lambda leaf, weight: jnp.sum(leaf.astype(weight.dtype) * weight, axis=0)
        return jax.tree.map(add, self.anomalies, weights)


class HybridCovariance(eqx.Module):
    """A weighted sum of covariances: `sum_i weights[i] * B_i`.

    Its root is `sum_i weights[i]^1/2 L_i v_i`, with control variables of each.

    Source: Hamill & Snyder (2000), Mon. Wea. Rev. 128, 2905-2919.
    """

    covariances: tuple[BackgroundCovariance, ...]
    weights: Float[Array, "covariance"]

    def __init__(
        self,
        covariances: tuple[BackgroundCovariance, ...],
        weights: tuple[float, ...] | Float[Array, "covariance"],
    ):
        """Set the covariances, and their weights, dimensionless, often of sum 1.

        Raises:
            ValueError: there are not as many weights as covariances.
            EquinoxRuntimeError: a weight is negative or not finite.
        """
        weights = jnp.asarray(weights, None if isinstance(weights, Array) else float)
        if weights.shape != (len(covariances),):
            raise ValueError(
                f"`weights` must be one for each of the {len(covariances)} covariances,"
                f" got the shape {weights.shape}."
            )
        fine = (weights >= 0) & (weights < jnp.inf)
        message = "`weights` must be finite and not negative."
        self.weights = eqx.error_if(weights, ~fine, message)
        self.covariances = tuple(covariances)

    def control(self, state: PyTree[Array]) -> tuple[PyTree[Array], ...]:
        """Return zeros, the control variables of each covariance."""
        return tuple(covariance.control(state) for covariance in self.covariances)

    def root(
        self, control: tuple[PyTree[Array], ...], state: PyTree[Array]
    ) -> PyTree[Array]:
        """Return the sum of the increments."""
        # Double where: the square root must never see the 0 it would differentiate.
        some = self.weights > 0
        factors = jnp.where(some, jnp.sqrt(jnp.where(some, self.weights, 1)), 0)
        parts = [
            jax.tree.map(
                lambda x, f=f: f.astype(x.dtype) * x, covariance.root(v, state)
            )
            for covariance, v, f in zip(self.covariances, control, factors, strict=True)
        ]
        return jax.tree.map(lambda *increments: sum(increments), *parts)
