"""The memory of a streamed verification does not grow with its members."""

import os
import subprocess
import sys
import textwrap

import pytest

PROGRAM = """
    import resource, sys
    import jax, jax.numpy as jnp
    from jax import lax, random as jr
    from skyens import scores

    jax.config.update("jax_compilation_cache_dir", sys.argv[1])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    stream, statistics = scores.MemberStream(), scores.StreamStatistics()
    shape = 64, 128

    @jax.jit
    def run(chunks):
        truth = jr.normal(jr.key(0), shape)

        def grow(i, seen):
            chunk = jr.normal(jr.fold_in(jr.key(1), i), (50, *shape))
            return stream.update(seen, chunk)

        seen = lax.fori_loop(0, chunks, grow, stream.init(truth))
        return statistics.update(statistics.init(), stream.finalize(seen))

    found = statistics.finalize(run(int(sys.argv[2]) // 50))
    # A standard normal verified against itself: RMSE 1 and CRPS 1 / sqrt(pi).
    assert abs(found.rmse - 1) < 0.05, found
    assert abs(found.crps - 0.564) < 0.02, found
    assert abs(found.spread_skill - 1) < 0.05, found
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(peak if sys.platform == "darwin" else 1024 * peak)
"""


def peak_megabytes(cache, members):
    """Run in a process of its own, as a peak is that of the whole process."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    environment.pop("JAX_DISABLE_MOST_OPTIMIZATIONS", None)
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), cache, str(members)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout) / 1e6


@pytest.mark.slow
def test_ten_times_the_members_need_no_more_memory(tmp_path):
    """All of 10,000 members would be 328 MB."""
    cache = str(tmp_path)
    peak_megabytes(cache, 100)  # compiles, which takes more memory than all the rest
    few, many = (peak_megabytes(cache, members) for members in (1_000, 10_000))
    print(f"peak resident memory: {few:.1f} MB, {many:.1f} MB of 10,000 members")
    assert many < few + 8
