"""Training: one pure update of parameters, optimiser state and their average."""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from skyens.training._trainable import trainable


class TrainState(eqx.Module):
    """All that training carries: save it and its key, and a run resumes exactly."""

    model: PyTree
    opt_state: PyTree
    ema: PyTree | None  # averaged parameters, float32 at least; None elsewhere
    steps: Int[Array, ""]  # updates tried
    failures: Int[Array, ""]  # of those, the ones that left everything as it was

    @staticmethod
    def init(
        model: PyTree, optimiser: optax.GradientTransformation, *, ema: bool = True
    ) -> "TrainState":
        """Return the state before the first update.

        `ema` says whether to keep an exponential moving average, a second copy of the
        parameters.

        Raises:
            ValueError: `model` has nothing to train.
        """
        parameters, rest = eqx.partition(model, trainable(model))
        if not jax.tree.leaves(parameters):
            raise ValueError(
                "`model` has no trainable array: give it a floating-point JAX array in "
                'a field whose metadata does not say `"trainable": False`.'
            )
        # A weakly typed parameter would come back strongly typed, and compile again.
        parameters = jax.tree.map(lambda p: jnp.asarray(p, p.dtype), parameters)
        average = jax.tree.map(lambda p: jnp.array(p, _wide(p.dtype)), parameters)
        with _optax_promotion():
            opt_state = optimiser.init(parameters)
        return TrainState(
            model=eqx.combine(parameters, rest),
            opt_state=opt_state,
            ema=average if ema else None,
            steps=jnp.zeros((), jnp.int32),
            failures=jnp.zeros((), jnp.int32),
        )


class Metrics(eqx.Module):
    """What one update reports."""

    loss: Float[Array, "*steps"]  # before the update
    gradient_norm: Float[Array, "*steps"]  # over all parameters, before any clipping
    failed: Bool[Array, "*steps"]
    aux: PyTree  # what the loss returned beside its value, or None


def make_step(
    loss: Callable[..., Any],
    optimiser: optax.GradientTransformation,
    *,
    ema_decay: float | None = None,
    has_aux: bool = False,
    donate: bool = False,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Return `step(state, batch, *, key=None) -> (state, metrics)`: pure, compiled.

    `loss(model, batch, *, key)` returns a real scalar or, with `has_aux`, a scalar and
    a tree of arrays for `metrics.aux`. What is trained is `trainable(model)`; the rest
    of the optimisation (clipping, schedules, accumulation) is a chain of Optax, which
    is told the loss as `value`. The gradient of a complex parameter is conjugated, so
    that going against it descends.

    Give every call the same `key`: the step folds `state.steps` into it, so a resumed
    run draws what an uninterrupted one would have drawn.

    Failure is data. Where the loss, the norm of the gradient or the optimiser's update
    is not finite, model, optimiser state and average stay as they were, `steps` and
    `failures` advance and `metrics.failed` is True: one bad batch, or one bad member
    of a vmapped ensemble of networks, harms nothing else. (A norm that overflows would
    leave infinite second moments in Adam that stop it silently.)

    `ema_decay` in (0, 1) is the decay of the moving average `ema_model` returns, free
    of the start's bias at every step: the weights of the updates seen so far sum to 1.
    None makes the average follow the parameters. `donate` lets the compiler reuse the
    memory of `state`, which must not be used again, nor the arrays it was made from.

    Source of the bias correction: Kingma & Ba (2015), arXiv:1412.6980, section 3.

    Raises:
        ValueError: `ema_decay` is outside (0, 1), the loss is not a real scalar, or
            `state` was made without the average that `ema_decay` is for.
    """
    if ema_decay is not None and not 0 < ema_decay < 1:
        raise ValueError(f"`ema_decay` must lie in (0, 1) or be None, got {ema_decay}.")
    extended = optax.with_extra_args_support(optimiser)

    def update(inputs: tuple, state: TrainState) -> tuple[TrainState, Metrics]:
        batch, key = inputs
        if ema_decay is not None and state.ema is None:
            raise ValueError(
                "`ema_decay` needs a state made by TrainState.init(..., ema=True)."
            )
        if key is not None:
            key = jr.fold_in(key, state.steps)
        parameters, rest = eqx.partition(state.model, trainable(state.model))

        def objective(parameters):
            result = loss(eqx.combine(parameters, rest), batch, key=key)
            value, aux = result if has_aux else (result, None)
            value = jnp.asarray(value)
            if value.shape or not jnp.issubdtype(value.dtype, jnp.floating):
                raise ValueError(
                    f"`loss` must return a real scalar, got {value.dtype} of shape "
                    f"{value.shape}."
                )
            return value, aux

        (value, aux), gradient = jax.value_and_grad(objective, has_aux=True)(parameters)
        # JAX returns the conjugate of the direction of ascent.
        gradient = jax.tree.map(jnp.conj, gradient)
        with _optax_promotion():
            change, opt_state = extended.update(
                gradient, state.opt_state, parameters, value=value
            )
            moved = optax.apply_updates(parameters, change)
        norm = _norm(gradient)
        healthy = jnp.isfinite(value) & jnp.isfinite(norm) & jnp.isfinite(_norm(change))
        keep = lambda new, old: jnp.where(healthy, new, old)

        parameters = jax.tree.map(keep, moved, parameters)
        failures = state.failures + (~healthy).astype(jnp.int32)
        steps = state.steps + 1
        average = None
        if state.ema is not None:
            average = _average(state.ema, parameters, ema_decay, steps - failures)
            average = jax.tree.map(keep, average, state.ema)
        opt_state = jax.tree.map(
            lambda new, old: keep(new, old) if eqx.is_array(new) else new,
            opt_state,
            state.opt_state,
        )
        model = eqx.combine(parameters, rest)
        successor = TrainState(model, opt_state, average, steps, failures)
        return successor, Metrics(value, norm, ~healthy, aux)

    compiled = eqx.filter_jit(update, donate="all-except-first" if donate else "none")

    def step(
        state: TrainState, batch: PyTree, *, key: Key[Array, ""] | None = None
    ) -> tuple[TrainState, Metrics]:
        return compiled((batch, key), state)

    return step


@eqx.filter_jit
def scan_steps(
    step: Callable[..., tuple[TrainState, Metrics]],
    state: TrainState,
    batches: PyTree,
    *,
    key: Key[Array, ""] | None = None,
) -> tuple[TrainState, Metrics]:
    """Run one update for each of the `batches`, stacked along their first axis.

    One compiled loop: small models, whose updates cost less than a call does, train
    several times faster. The metrics carry the batches' axis.
    """
    arrays, rest = eqx.partition(state, eqx.is_array)

    def body(arrays, batch):
        successor, metrics = step(eqx.combine(arrays, rest), batch, key=key)
        return eqx.filter(successor, eqx.is_array), metrics

    arrays, metrics = jax.lax.scan(body, arrays, batches)
    return eqx.combine(arrays, rest), metrics


def ema_model(state: TrainState) -> PyTree:
    """Return the model with averaged parameters, in the parameters' dtypes.

    Before the first update that succeeds these are the initial ones.

    Raises:
        ValueError: `state` keeps no average.
    """
    if state.ema is None:
        raise ValueError("`state` keeps no average: TrainState.init(..., ema=True).")
    parameters, rest = eqx.partition(state.model, trainable(state.model))
    average = jax.tree.map(lambda e, p: e.astype(p.dtype), state.ema, parameters)
    return eqx.combine(average, rest)


def _average(
    ema: PyTree, parameters: PyTree, decay: float | None, updates: Int[Array, ""]
) -> PyTree:
    """Return the average after `updates` of them, the newest being `parameters`.

    The newest weighs (1 - d) / (1 - d^n). This recursion gives the average that starts
    from 0, divided by 1 - d^n, and needs no division afterwards.
    """
    if decay is None:
        return jax.tree.map(lambda e, p: p.astype(e.dtype), ema, parameters)
    count = jnp.maximum(updates, 1).astype(float)
    weight = (1 - decay) / -jnp.expm1(count * math.log(decay))
    follow = lambda e, p: e + weight.astype(e.dtype) * (p.astype(e.dtype) - e)
    return jax.tree.map(follow, ema, parameters)


def _optax_promotion() -> Any:
    """Let Optax promote dtypes as it expects to, whatever the user's setting."""
    return jax.numpy_dtype_promotion("standard")


def _norm(tree: PyTree) -> Float[Array, ""]:
    """Return the Euclidean norm over all leaves, accumulated in float32 at least."""
    leaves = [leaf.astype(_wide(leaf.dtype)) for leaf in jax.tree.leaves(tree)]
    squares = [jnp.sum(jnp.abs(leaf) ** 2) for leaf in leaves]
    widest = max((square.dtype for square in squares), key=lambda d: d.itemsize)
    return jnp.sqrt(jnp.stack([square.astype(widest) for square in squares]).sum())


def _wide(dtype: Any) -> Any:
    """Return `dtype`, or float32 where it is narrower."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)
