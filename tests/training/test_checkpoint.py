import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

from skyens.nn import Channels, Normaliser
from skyens.training import TrainState, _leaves, load, make_step, save

HYPERPARAMETERS = {"width": 6, "rate": 0.01}
CHANNELS = Channels(("z500", "t850"), ("m2 s-2", "K"))
NORMALISER = Normaliser(np.asarray([54e3, 280.0]), np.asarray([[3e3], [15.0]]))


def optimiser(rate):
    return optax.chain(optax.add_noise(0.01, 0.5, jr.key(1)), optax.adam(rate))


def build(width, rate):
    model = eqx.nn.MLP(2, 2, width, 1, key=jr.key(0))
    return TrainState.init(model, optimiser(rate)), jr.key(0)


@functools.cache
def training_step():
    def loss(model, batch, *, key):
        noise = 0.1 * jr.normal(key, batch.shape)
        return jnp.mean((jax.vmap(model)(batch + noise) - jnp.flip(batch, 1)) ** 2)

    return make_step(loss, optimiser(HYPERPARAMETERS["rate"]), ema_decay=0.9)


def train(state, key, steps):
    data = np.random.default_rng(9).normal(size=(10, 4, 2))
    for _ in range(steps):
        state, _ = training_step()(state, jnp.asarray(data[state.steps]), key=key)
    return state


def arrays(tree):
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    words = lambda x: jr.key_data(x) if is_key(x) else x
    return jax.tree.map(words, eqx.filter(tree, eqx.is_array))


def keep(path, number, **rest):
    save(path, {"number": jnp.full(3, number)}, **rest)


def kept(path):
    return float(load(path, lambda **_: {"number": jnp.zeros(3)}).state["number"][0])


def in_a_process(job, folder):
    """Run this file as a script, which does the `job` of its last lines."""
    return subprocess.Popen([sys.executable, __file__, job, str(folder)])


def test_a_run_resumes_exactly_in_a_fresh_process(tmp_path):
    state, _ = build(**HYPERPARAMETERS)
    key = jr.key(42)
    halfway = train(state, key, 5)
    save(tmp_path / "half", (halfway, key), hyperparameters=HYPERPARAMETERS)
    assert in_a_process("resume", tmp_path).wait(120) == 0
    resumed = load(tmp_path / "full", build).state
    uninterrupted = train(halfway, key, 5)
    chex.assert_trees_all_equal(arrays(resumed), arrays((uninterrupted, key)))
    assert int(resumed[0].steps) == 10


def test_all_that_describes_the_model_comes_back(tmp_path):
    metadata = {"trained on": "1979-2015", "epochs": 3, "skill": [0.25, None]}
    state = build(**HYPERPARAMETERS)
    save(
        str(tmp_path / "a" / "run"),
        state,
        hyperparameters=HYPERPARAMETERS,
        channels=CHANNELS,
        normaliser=NORMALISER,
        metadata=metadata,
    )
    checkpoint = load(tmp_path / "a" / "run", build)
    assert checkpoint.hyperparameters == HYPERPARAMETERS
    assert checkpoint.metadata == metadata
    assert checkpoint.channels == CHANNELS
    assert jax.tree.structure(checkpoint.normaliser) == jax.tree.structure(NORMALISER)
    chex.assert_trees_all_equal(checkpoint.normaliser, NORMALISER)
    chex.assert_trees_all_equal(arrays(checkpoint.state), arrays(state))
    network = checkpoint.state[0].model
    np.testing.assert_array_equal(network(jnp.ones(2)), state[0].model(jnp.ones(2)))


def test_what_was_not_given_is_absent(tmp_path):
    keep(tmp_path / "run", 1.0)
    checkpoint = load(tmp_path / "run", lambda: {"number": jnp.zeros(3)})
    assert checkpoint.channels is None
    assert checkpoint.normaliser is None
    assert checkpoint.hyperparameters == checkpoint.metadata == {}
    save(tmp_path / "empty", {"steps": 3})
    assert load(tmp_path / "empty", lambda: {"steps": 0}).state == {"steps": 3}


def test_the_builder_may_allocate_nothing(tmp_path):
    save(tmp_path / "run", build(**HYPERPARAMETERS), hyperparameters=HYPERPARAMETERS)
    shapes = lambda **settings: eqx.filter_eval_shape(build, **settings)
    again = load(tmp_path / "run", shapes).state
    chex.assert_trees_all_equal(arrays(again), arrays(build(**HYPERPARAMETERS)))


def test_a_checkpoint_replaces_an_older_one_alone(tmp_path):
    path = tmp_path / "run"
    path.mkdir()  # an empty folder holds nobody's data
    for number in (1.0, 2.0, 3.0):
        keep(path, number)
        assert kept(path) == number
        assert len(list(path.glob("arrays-*"))) == 1
    (path / "notes.txt").write_text("mine")
    keep(path, 4.0)
    assert (path / "notes.txt").read_text() == "mine"
    assert os.listdir(tmp_path) == ["run"]


@pytest.mark.parametrize("name", ["notes.txt", "manifest.json"])
def test_other_data_are_never_overwritten(tmp_path, name):
    path = tmp_path / "results"
    path.mkdir()
    (path / name).write_text('{"mine": 1}')
    for target in (path, path / name):
        with pytest.raises(ValueError, match="something else than a checkpoint"):
            keep(target, 1.0)
    assert (path / name).read_text() == '{"mine": 1}'
    assert os.listdir(tmp_path) == ["results"]


def test_another_model_is_named(tmp_path):
    state = build(**HYPERPARAMETERS)
    save(tmp_path / "run", state, hyperparameters=HYPERPARAMETERS)
    wider = lambda width, rate: build(width + 1, rate)
    where = r"`state\[0\].model.layers\[0\].weight` it has float64 "
    with pytest.raises(ValueError, match=where + r"\(6, 2\), .* \(7, 2\)"):
        load(tmp_path / "run", wider)
    other = lambda width, rate: (TrainState.init(state[0].model, optax.sgd(1)), 0)
    with pytest.raises(ValueError, match=r"opt_state.* builder's model has nothing"):
        load(tmp_path / "run", other)


def test_damage_is_found_and_the_file_named(tmp_path):
    path = tmp_path / "run"
    keep(path, 1.0)
    files = [file for file in path.rglob("*") if file.is_file()]
    assert len(files) > 2
    for file in files:
        content = file.read_bytes()
        altered = bytes([content[0] ^ 1]) + content[1:] if content else b"more"
        for damaged in {content[: len(content) // 2], altered} - {content}:
            file.write_bytes(damaged)
            with pytest.raises(ValueError, match=f"{file.name} (is trunc|was altered)"):
                kept(path)
        file.unlink()
        with pytest.raises(ValueError, match=rf"{file.name} is missing|no {file.name}"):
            kept(path)
        file.write_bytes(content)
    assert kept(path) == 1.0


def test_what_is_no_checkpoint_is_said_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        kept(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"not a checkpoint: it has no manifest\.json"):
        kept(tmp_path)
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(ValueError, match=r"not a checkpoint: manifest\.json is some"):
        kept(tmp_path)
    keep(tmp_path / "run", 1.0)
    manifest = tmp_path / "run" / "manifest.json"
    later = {**json.loads(manifest.read_text()), "version": 9}
    manifest.write_text(json.dumps(later))
    with pytest.raises(ValueError, match=r"version 9; .* reads up to 1: update"):
        kept(tmp_path / "run")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ((1, 2), r"is \(1, 2\), which JSON gives back as \[1, 2\]"),
        ({1: 2}, r"is \{1: 2\}, which JSON gives back as \{'1': 2\}"),
        (jnp.tanh, "is not JSON"),
        (float("nan"), "is not JSON"),
    ],
)
def test_what_json_would_change_is_refused(tmp_path, value, words):
    with pytest.raises(ValueError, match=r"`hyperparameters\['layers'\]` " + words):
        keep(tmp_path / "run", 1.0, hyperparameters={"width": 2, "layers": value})
    assert not (tmp_path / "run").exists()


class Killed(BaseException):
    """Ends a save where a kill would."""


@pytest.mark.parametrize("fatal", range(1, 11))
def test_a_save_cut_short_leaves_the_old_or_the_new(tmp_path, monkeypatch, fatal):
    path, calls = tmp_path / "run", []

    def mortal(function):
        def call(*arguments, **settings):
            calls.append(function)
            if len(calls) == fatal:
                raise Killed
            return function(*arguments, **settings)

        return call

    def cut_short(number):
        calls.clear()
        with monkeypatch.context() as patched:
            patched.setattr("skyens.training._leaves.write", mortal(_leaves.write))
            for name in ("rename", "replace", "rmdir"):
                patched.setattr(os, name, mortal(getattr(os, name)))
            try:
                keep(path, number)
            except Killed:
                return True
        return False

    if cut_short(1.0):
        keep(path, 1.0)
    assert kept(path) == 1.0
    cut = cut_short(2.0)
    assert kept(path) in ((1.0, 2.0) if cut else (2.0,))
    keep(path, 3.0)
    assert kept(path) == 3.0
    assert len(list(path.iterdir())) == 2
    assert os.listdir(tmp_path) == ["run"]


def test_a_killed_process_leaves_only_whole_checkpoints(tmp_path):
    process, deadline = in_a_process("save", tmp_path), time.monotonic() + 60
    for sign in ("fresh-3", ".fresh-4.partial"):
        while not (tmp_path / sign).exists() and time.monotonic() < deadline:
            time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    fresh = sorted(tmp_path.glob("fresh-*"))
    assert len(fresh) >= 4
    for path in fresh:
        assert kept(path) == int(path.name.removeprefix("fresh-"))
    assert kept(tmp_path / "same") >= 3


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    job, folder = sys.argv[1], Path(sys.argv[2])
    if job == "resume":
        shapes = functools.partial(eqx.filter_eval_shape, build)
        checkpoint = load(folder / "half", shapes)
        state, key = checkpoint.state
        settings = checkpoint.hyperparameters
        save(folder / "full", (train(state, key, 5), key), hyperparameters=settings)
    for number in range(1000) if job == "save" else ():
        keep(folder / "same", float(number))
        keep(folder / f"fresh-{number}", float(number))
