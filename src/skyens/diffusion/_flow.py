"""The probability flow and the reverse process as differential equations of diffrax.

In `u = log(sigma)` the flow is `dx / du = x - D(x, exp(u))`, as smooth at small levels
as at large ones, so that solvers of high order take few steps. It moves a noisy state
up and down the levels without any chance, and therefore tells its density. Coordinates
are scaled by `1 / alpha`, in which the flow is the same for every schedule.
"""

import math
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float, PRNGKeyArray

from skyens.diffusion._checked import (
    checked_denoiser,
    checked_range,
    report_failure,
)
from skyens.diffusion._denoisers import Denoiser, Scalar
from skyens.diffusion._traces import ExactTrace, Trace

State = Float[Array, "*state"]


def flow_term(denoiser: Denoiser, *, condition: Any = None) -> diffrax.ODETerm:
    """Return the probability flow as a term of diffrax, in the time `log(sigma)`."""
    denoise = checked_denoiser(denoiser, condition)
    return diffrax.ODETerm(lambda time, x, args: x - denoise(x, jnp.exp(time)))


def reverse_terms(
    denoiser: Denoiser,
    brownian: diffrax.AbstractBrownianPath,
    *,
    eta: float | Float[Array, ""] = 1.0,
    condition: Any = None,
) -> diffrax.MultiTerm:
    """Return the reverse process as terms of diffrax, in the time `-log(sigma)`.

    `dx = (1 + eta) (D - x) dt + sqrt(2 eta) sigma dW`: the reverse of the process that
    added the noise where `eta` is 1, the flow where it is 0. The noise is additive, so
    solvers made for that, `diffrax.ShARK` say, have their full order. `brownian` has
    the shape and dtype of the state.

    Source: Anderson (1982), Stoch. Proc. Appl. 12, 313-326; Karras et al. (2022),
    arXiv:2206.00364, equation 6.
    """
    denoise = checked_denoiser(denoiser, condition)

    def towards_clean(time, x, args):
        return (1 + jnp.asarray(eta, x.dtype)) * (denoise(x, jnp.exp(-time)) - x)

    def stir(time, x, args):
        std = jnp.sqrt(2 * jnp.asarray(eta, x.dtype)) * jnp.exp(-time).astype(x.dtype)
        return lx.DiagonalLinearOperator(jnp.broadcast_to(std, x.shape))

    return diffrax.MultiTerm(
        diffrax.ODETerm(towards_clean), diffrax.ControlTerm(stir, brownian)
    )


_DOPRI = diffrax.Dopri5()
_BACK = diffrax.RecursiveCheckpointAdjoint()


def flow(
    denoiser: Denoiser,
    x: State,
    start: Scalar,
    end: Scalar,
    *,
    condition: Any = None,
    solver: diffrax.AbstractAdaptiveSolver = _DOPRI,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = 4096,
    adjoint: diffrax.AbstractAdjoint = _BACK,
) -> State:
    """Return where the probability flow takes `x` from one noise level to another.

    Down, from `sigma_max * noise`, it draws a sample, which still has the noise of the
    `end`; up, it encodes a state as the noise it came from. Both to the tolerances of
    an adaptive solver. `atol` is in units of the state. `x` is scaled by `1 / alpha`.

    A solve that does not arrive says at which level it stopped: as an error, or under
    tracing as a warning, and then the result is NaN.

    Raises:
        ValueError: the denoiser returns another shape or dtype than it was given.
        EquinoxRuntimeError: a level is not positive and finite, or leaves the range the
            denoiser was trained in; `max_steps` were not enough, or the denoiser
            returned what is not finite.
    """
    first, last = _log_levels(denoiser, x, start, end)
    solution = diffrax.diffeqsolve(
        flow_term(denoiser, condition=condition),
        solver,
        first,
        last,
        _first_step(first, last),
        x,
        stepsize_controller=diffrax.PIDController(rtol, atol),
        max_steps=max_steps,
        adjoint=adjoint,
        throw=False,
    )
    return _arrived(solution, lambda end: end, max_steps)


_EXACT = ExactTrace()


def log_prob(
    denoiser: Denoiser,
    x: State,
    sigma_min: Scalar,
    sigma_max: Scalar,
    *,
    trace: Trace = _EXACT,
    key: PRNGKeyArray | None = None,
    condition: Any = None,
    solver: diffrax.AbstractAdaptiveSolver = _DOPRI,
    rtol: float = 1e-6,
    atol: float = 1e-6,
    max_steps: int = 4096,
    adjoint: diffrax.AbstractAdjoint = _BACK,
) -> Float[Array, ""]:
    """Return the log density of `x` at the noise level `sigma_min`, in nats.

    The flow takes `x` up to `sigma_max`, where the law counts as white noise around
    the denoised state; what it widens on the way is the integral of its divergence,
    found along with it. With d entries, u = log(sigma) and J the denoiser's Jacobian,

        log p(x) = log N(x(u1); D(x(u1)), sigma_max^2 I) + integral of (d - tr J) du.

    The law at `sigma_min` is the clean one with that much white noise: take it small
    against the finest scale. Taking the law at `sigma_max` for white noise is off by
    about `d v / sigma_max^2` nats where clean states have variance v. `key` is for
    traces that draw random vectors. In float32 choose tolerances of 1e-4 and above. A
    solve that does not arrive is reported as `flow` does it.

    Source: Song et al. (2021), ICLR, arXiv:2011.13456, equation 39.

    Raises:
        ValueError: the trace needs a key and there is none, or the denoiser returns
            another shape or dtype than it was given.
        EquinoxRuntimeError: not 0 < sigma_min < sigma_max < inf, a level leaves the
            range the denoiser was trained in, `max_steps` were not enough, or the
            denoiser returned what is not finite.
    """
    prepared = trace.prepare(x, key)
    first, last = _log_levels(denoiser, x, sigma_min, sigma_max)
    first = eqx.error_if(
        first, ~(first < last), "`sigma_min` must be below `sigma_max`."
    )
    denoise = checked_denoiser(denoiser, condition)

    def rates(time, state, args):
        noisy, _ = state
        clean, sum_of_gains = trace(
            lambda x: denoise(x, jnp.exp(time)), noisy, prepared
        )
        return noisy - clean, sum_of_gains

    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(rates),
        solver,
        first,
        last,
        _first_step(first, last),
        (x, jnp.zeros((), x.dtype)),
        stepsize_controller=diffrax.PIDController(rtol, atol),
        max_steps=max_steps,
        adjoint=adjoint,
        throw=False,
    )
    level = jnp.exp(last)
    # The integral of d is d (u1 - u0), and d u1 goes away against the noise's own.
    free = x.size * (first + math.log(2 * math.pi) / 2)

    def density(end):
        top, gained = end
        scaled = (top - denoise(top, level)) / level
        return -free - jnp.sum(scaled * scaled) / 2 - gained

    return _arrived(solution, density, max_steps)


_SHARK = diffrax.ShARK()


def reverse_sde(
    denoiser: Denoiser,
    x: State,
    start: Scalar,
    end: Scalar,
    *,
    key: PRNGKeyArray,
    eta: float | Float[Array, ""] = 1.0,
    steps: int = 200,
    condition: Any = None,
    solver: diffrax.AbstractSolver = _SHARK,
    adjoint: diffrax.AbstractAdjoint = _BACK,
) -> State:
    """Return where the reverse process takes `x`, from a noise level to a lower one.

    `steps` of equal length in log(sigma), along a Brownian path that `key` fixes: the
    same path for any number of steps and any solver for additive noise. For gradients
    through it, `adjoint` says how; where none is wanted, `sample` with
    `ExponentialSDE` or `DPMSolverSDE` is much faster.

    What becomes NaN or infinite on the way says from which level on: as an error, or
    under tracing as a warning.

    Raises:
        ValueError: `steps` is below 1, or the denoiser returns another shape or dtype
            than it was given.
        EquinoxRuntimeError: not 0 < end < start < inf, a level leaves the range the
            denoiser was trained in, `eta` is negative or NaN, or the state does not
            stay finite.
    """
    if steps < 1:
        raise ValueError(f"`steps` must be at least 1, got {steps}.")
    first, last = _log_levels(denoiser, x, start, end)
    last = eqx.error_if(last, ~(last < first), "`end` must be below `start`.")
    eta = jnp.asarray(eta, x.dtype)
    eta = eqx.error_if(eta, ~(eta >= 0), "`eta` must not be negative.")
    path = diffrax.VirtualBrownianTree(
        -first,
        -last,
        tol=(first - last) / (4 * steps),
        shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        key=key,
        levy_area=diffrax.SpaceTimeLevyArea,
    )
    terms = reverse_terms(denoiser, path, eta=eta, condition=condition)
    grid = jnp.linspace(-first, -last, steps + 1, dtype=x.dtype)
    solution = diffrax.diffeqsolve(
        terms,
        solver,
        -first,
        -last,
        None,
        x,
        stepsize_controller=diffrax.StepTo(ts=grid),
        max_steps=steps + 1,
        adjoint=adjoint,
        event=diffrax.Event(lambda t, y, args, **_: ~jnp.isfinite(y).all()),
    )
    reached, stopped = _end(solution)
    before = jnp.exp((first - last) / steps - stopped)  # the level a step earlier
    failed = jnp.where(jnp.isfinite(reached).all(), 0, before)
    return report_failure(reached, failed)


def _first_step(first, last):
    """Return a first step in log(sigma)."""
    # The flow forgets its start within one unit, or sooner.
    return jnp.clip(last - first, -0.1, 0.1)


def _end(solution):
    """Return the end of a solution, and the time it has."""
    assert solution.ys is not None  # the default is to save the end
    assert solution.ts is not None
    return jax.tree.map(lambda leaf: leaf[0], solution.ys), solution.ts[0]


def _arrived(solution, finish, max_steps):
    """Return what `finish` makes of the end, or report where the flow got stuck."""
    end, stopped = _end(solution)
    result = finish(end)
    fine = (solution.result == diffrax.RESULTS.successful) & jnp.isfinite(result).all()
    failed = jnp.where(fine, 0, jnp.exp(jax.lax.stop_gradient(stopped)))
    message = lambda level: (
        f"The flow does not get beyond noise level {level:.6g}: there `denoiser` "
        f"returned what is not finite, or `max_steps`, {max_steps}, are too few."
    )
    return report_failure(jnp.where(fine, result, jnp.nan), failed, message)


def _log_levels(denoiser, x, first, last):
    """Return the logarithms of two levels, once they are fit to go between."""
    levels = jnp.stack([jnp.asarray(level, x.dtype) for level in (first, last)])
    good = jnp.all((levels > 0) & jnp.isfinite(levels))
    levels = eqx.error_if(
        levels, ~good, "Noise levels must be positive and finite, not 0."
    )
    levels = jnp.log(checked_range(denoiser, levels, levels))
    return levels[0], levels[1]
