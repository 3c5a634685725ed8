"""States of statistics outlive their process."""

import os
import signal
import subprocess
import sys
import textwrap

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skyens import scores, training

STATISTICS = {
    "RMSE": scores.RMSE(),
    "SpreadSkill": scores.SpreadSkill(),
    "RankHistogram": scores.RankHistogram(4),
    "CRPS": scores.CRPS(),
    "MemberStream": scores.MemberStream(),
}


def parts(name, dtype):
    """Return the empty state and an update by the part of number `i`."""
    draws = np.random.default_rng(0).normal(size=(3, 5, 2, 6))
    draws = jnp.asarray(draws, dtype)
    stat = STATISTICS[name]
    if name == "MemberStream":
        levels = jnp.zeros((1,), dtype)
        empty = stat.init(draws[0, 0], thresholds=levels)
        return empty, lambda state, i: stat.update(state, draws[i, 1:])
    empty = stat.init((2,), dtype)
    return empty, lambda state, i: stat.update(state, draws[i, 1:], draws[i, 0])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", list(STATISTICS))
def test_a_saved_state_goes_on_with_equal_bits(name, dtype, tmp_path):
    empty, update = parts(name, dtype)
    update = jax.jit(update, static_argnums=1)
    state = update(update(empty, 0), 0)
    path = tmp_path / "state.eqx"
    eqx.tree_serialise_leaves(path, state)
    loaded = eqx.tree_deserialise_leaves(path, empty)
    chex.assert_trees_all_equal(loaded, state)
    chex.assert_trees_all_equal_dtypes(loaded, state)
    chex.assert_trees_all_equal(update(loaded, 1), update(state, 1))


@pytest.mark.parametrize("name", ["CRPS", "MemberStream"])
def test_a_checkpoint_holds_a_state(name, tmp_path):
    empty, update = parts(name, "float32")
    state = update(empty, 0)
    training.save(tmp_path / "run", state, metadata={"chunks": 1})
    loaded = training.load(tmp_path / "run", lambda: empty)
    chex.assert_trees_all_equal(loaded.state, state)
    assert loaded.metadata == {"chunks": 1}


@pytest.mark.slow
def test_a_killed_process_resumes_to_the_same_result(tmp_path):
    """Killed after its fifth chunk of eight, of which three were saved."""
    program = """
        import os, pathlib, signal, sys
        import equinox as eqx, jax, jax.numpy as jnp, numpy as np
        from skyens import scores

        folder, killed = pathlib.Path(sys.argv[1]), sys.argv[2] == "killed"
        stream = scores.MemberStream()
        chunk = lambda i: np.random.default_rng(i).normal(size=(6, 50)).astype("f")
        start = 0, stream.init(jnp.zeros(50))
        last = folder / "last.eqx"
        if last.exists():
            start = eqx.tree_deserialise_leaves(last, start)
        first, state = start
        update = jax.jit(stream.update)
        for i in range(first, 8):
            state = update(state, chunk(i))
            if i % 3 == 2:
                # Written beside its place and renamed: complete or absent.
                eqx.tree_serialise_leaves(folder / "new.eqx", (i + 1, state))
                os.replace(folder / "new.eqx", last)
            if killed and i == 4:
                os.kill(os.getpid(), signal.SIGKILL)
        eqx.tree_serialise_leaves(folder / "done.eqx", state)
    """
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}

    def run(folder, fate):
        folder.mkdir(exist_ok=True)
        command = [sys.executable, "-c", textwrap.dedent(program), str(folder), fate]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    broken, straight = tmp_path / "broken", tmp_path / "straight"
    assert run(broken, "killed").returncode == -signal.SIGKILL
    assert not (broken / "done.eqx").exists()
    for folder in (broken, straight):
        done = run(folder, "alive")
        assert done.returncode == 0, done.stderr
    files = [(x / "done.eqx").read_bytes() for x in (broken, straight)]
    assert files[0] == files[1]
