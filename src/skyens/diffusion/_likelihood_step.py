"""Draw a state near another that fits an observation: half of a split Gibbs step."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
from jaxtyping import Array, Float, PRNGKeyArray

from skyens.diffusion._denoisers import Scalar
from skyens.diffusion._guidance import conjugate_gradients
from skyens.observations import Observation


class Perturbed(eqx.Module):
    """Draw `z ~ N(z; x, std^2 I) p(y | z)` by perturbing both, and one solve.

    Exact where operator and errors are linear and Gaussian; else both are taken to be
    so about x. No matrix is formed.

    Source: Papandreou & Yuille (2010), NIPS 23, "Gaussian sampling by local
    perturbations".
    """

    solver: lx.AbstractLinearSolver | None = None

    def __call__(
        self,
        observation: Observation,
        x: Float[Array, "*state"],
        std: Scalar,
        *,
        key: PRNGKeyArray,
    ) -> Float[Array, "*state"]:
        """Return the draw, in the shape, units and dtype of `x`."""
        state_key, error_key = jr.split(key)
        innovation, operator = observation.linearise(x)
        std = jnp.asarray(std, x.dtype)
        wander = std * jr.normal(state_key, x.shape, x.dtype)
        # Noise on a masked entry is lost again: its column of the adjoint is 0.
        error = jr.normal(error_key, innovation.shape, innovation.dtype)
        missed = innovation + error - operator.mv(wander)
        adjoint = operator.transpose()
        variance = jnp.square(std)
        spread = lambda z: variance * adjoint.mv(z)
        system = lx.FunctionLinearOperator(
            lambda z: z + operator.mv(spread(z)),
            jax.eval_shape(lambda: innovation),
            lx.positive_semidefinite_tag,
        )
        solver = self.solver or conjugate_gradients(innovation)
        solution = lx.linear_solve(system, missed, solver, throw=False).value
        return x + wander + spread(solution)


class Langevin(eqx.Module):
    """Draw `z ~ N(z; x, std^2 I) p(y | z)` by Langevin steps, each accepted or not.

    For operators that are far from linear and errors of any law: only its log-density
    and slope are asked for. It starts at the draw of `Perturbed` and leaves the target
    as it is whatever `pace` and `steps` are, which tell how far it gets: observations
    much sharper than `std` need many steps.

    Source: Roberts & Tweedie (1996), Bernoulli 2, 341-363.
    """

    pace: Float[Array, ""]
    steps: int = eqx.field(static=True)

    def __init__(self, steps: int = 50, pace: float | Float[Array, ""] = 0.5):
        """Set the number of `steps`, and their length against the stable one.

        Raises:
            ValueError: `steps` is below 1.
            EquinoxRuntimeError: `pace` is not above 0.
        """
        if steps < 1:
            raise ValueError(f"`steps` must be at least 1, got {steps}.")
        pace = jnp.asarray(pace, float)
        self.pace = eqx.error_if(pace, ~(pace > 0), "`pace` must be above 0.")
        self.steps = steps

    def __call__(
        self,
        observation: Observation,
        x: Float[Array, "*state"],
        std: Scalar,
        *,
        key: PRNGKeyArray,
    ) -> Float[Array, "*state"]:
        """Return the last state, in the shape, units and dtype of `x`."""
        start_key, norm_key, walk_key = jr.split(key, 3)
        precision = 1 / jnp.square(jnp.asarray(std, x.dtype))
        steepest = precision + _curvature(observation, x, norm_key)
        length = self.pace.astype(x.dtype) / steepest

        def log_density(z):
            near = jnp.sum(jnp.square(z - x)) * precision
            return observation.log_prob(z).astype(x.dtype) - near / 2

        def look(z):
            value, slope = jax.value_and_grad(log_density)(z)
            # Where there is no density a walk may start, but not arrive.
            there = jnp.isfinite(value)
            return jnp.where(there, value, -jnp.inf), jnp.where(there, slope, 0)

        def forward(origin, slope, z):
            """The log-density of proposing `z`, but for a constant."""
            return -jnp.sum(jnp.square(z - origin - length * slope)) / (4 * length)

        def step(carry, key):
            z, value, slope = carry
            noise_key, accept_key = jr.split(key)
            noise = jr.normal(noise_key, z.shape, z.dtype)
            proposed = z + length * slope + jnp.sqrt(2 * length) * noise
            value_there, slope_there = look(proposed)
            back = forward(proposed, slope_there, z)
            gain = value_there - value + back - forward(z, slope, proposed)
            draw = jnp.log(jr.uniform(accept_key, (), z.dtype))
            accept = draw < gain  # False for NaN
            there = proposed, value_there, slope_there
            choose = lambda a, b: jnp.where(accept, a, b)
            return jax.tree.map(choose, there, carry), None

        start = Perturbed()(observation, x, std, key=start_key)
        carry = start, *look(start)
        return jax.lax.scan(step, carry, jr.split(walk_key, self.steps))[0][0]


def _curvature(observation, x, key):
    """Return about the largest eigenvalue of `A' R^-1 A` at `x`, by power iteration."""
    _, operator = observation.linearise(x)
    adjoint = operator.transpose()

    def norm(v):
        square = jnp.sum(jnp.square(v))
        return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)

    def step(_, carry):
        vector, _ = carry
        vector = adjoint.mv(operator.mv(vector))
        size = norm(vector)
        return vector / jnp.where(size > 0, size, 1), size

    start = jr.normal(key, x.shape, x.dtype)
    first = start / norm(start), jnp.zeros((), x.dtype)
    return jax.lax.fori_loop(0, 8, step, first)[1]
