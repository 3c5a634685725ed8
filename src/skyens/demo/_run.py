"""The whole job: analyses in, a verified ensemble forecast and its pictures out."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import skyens
from skyens import data, ensembles, training
from skyens.demo._learn import train
from skyens.demo._members import (
    WIDTH,
    assimilate,
    at_leads,
    dressed_persistence,
    forecast,
    starting_members,
)
from skyens.demo._pictures import draw
from skyens.demo._verify import CAUTION, aims, region_weights, scorecard
from skyens.demo._world import (
    LEADS,
    STEP_HOURS,
    Analyses,
    fit_model_error,
    open_analyses,
    physics,
)
from skyens.dynamics import Purpose, member_keys, run_key

if TYPE_CHECKING:
    import pandas

STEPS = int(LEADS[-1]) // STEP_HOURS
FIRST = int(LEADS[0]) // STEP_HOURS
ONE_DAY = np.timedelta64(1, "D")


@dataclass(frozen=True)
class Settings:
    """What a user may choose."""

    members: int = 100
    seed: int = 0
    epochs: int = 10
    output: str = "demo_output"

    def __post_init__(self):
        """Check them before anything runs.

        Raises:
            ValueError: `members` is no positive multiple of 20, or `epochs` is below 1.
        """
        if self.members < WIDTH or self.members % 20:
            raise ValueError(
                f"`members` must be a positive multiple of 20, got {self.members}."
            )
        if self.epochs < 1:
            raise ValueError(f"`epochs` must be at least 1, got {self.epochs}.")


def run(settings: Settings) -> "pandas.DataFrame":
    """Run the demo, write everything below `settings.output`, return the scorecard.

    Raises:
        FileExistsError: the output folder holds data that are not this demo's.
        ValueError: it holds a checkpoint of another model, or a broken one.
    """
    folder = Path(settings.output)
    data.check_output(folder / "forecast.zarr", overwrite=True)
    folder.mkdir(parents=True, exist_ok=True)
    say = _Clock(stages=9)
    key = jr.key(settings.seed)

    say("real analyses and the physics")
    analyses = open_analyses()
    model = physics(analyses.grid)
    # Model versions: 0 is the physics, 1 the learned step.
    key_of = lambda purpose, version, time=0: run_key(
        key, purpose, start=analyses.time[time], version=version
    )
    noisy = fit_model_error(model, analyses, key=key_of(Purpose.STEP, 0))

    say("a learned step")
    signature = {"seed": settings.seed, "epochs": settings.epochs}
    signature |= {"version": skyens.__version__}
    learned, report = train(
        noisy,
        analyses,
        settings.epochs,
        folder / "checkpoint",
        key=key,
        signature=signature,
    )
    say.note(_training_words(report, settings.epochs))

    say(f"{settings.members} starting members")
    start = starting_members(model, analyses, settings.members, key=key)

    say("physics ensemble")
    keys = member_keys(key_of(Purpose.PERTURB, 0), settings.members)
    states = jax.vmap(lambda value, key: noisy.start(value, key=key))(start, keys)
    whole = lambda state: state
    step_key = key_of(Purpose.STEP, 0)
    path = forecast(noisy, states, FIRST, key=step_key, reduce=whole)
    at_12 = jax.tree.map(lambda leaf: leaf[:, -1], path)
    later_key = key_of(Purpose.STEP, 0, time=1)
    later = forecast(noisy, at_12, STEPS - FIRST, key=later_key)
    free = jnp.concatenate([path["value"], later], axis=1)

    say("assimilation at 12 h")
    corrected, info, observation = assimilate(
        at_12, analyses, key=key_of(Purpose.OBSERVE, 0, time=1)
    )
    before, after = (_error(states, analyses) for states in (at_12, corrected))
    say.note(
        f"   {int(info.used)} heights used, {int(info.masked)} masked; error of the "
        f"mean over 20N-80N {before:.1f} m before, {after:.1f} m after"
    )
    later = forecast(noisy, corrected, STEPS - FIRST, key=later_key)
    blank = jnp.full_like(free[:, : FIRST - 1], jnp.nan)
    assimilated = jnp.concatenate([blank, corrected["value"][:, None], later], axis=1)

    say("neural ensemble")
    neural_key = key_of(Purpose.STEP, 1)
    keys = member_keys(key_of(Purpose.PERTURB, 1), settings.members)
    states = jax.vmap(lambda value, key: learned.start(value[None], key=key))(
        start, keys
    )
    neural = forecast(learned, states, STEPS, key=neural_key)[:, :, 0]

    say("30 days of the learned step")
    run_all = eqx.filter_jit(ensembles.rollout)
    few = jax.tree.map(lambda leaf: leaf[:4], states)
    deviation = []
    for day in training.progress(range(30), description="30 days"):
        day_key = run_key(
            key, Purpose.STEP, start=analyses.time[0] + day * ONE_DAY, version=1
        )
        path = run_all(learned, few, 24 // STEP_HOURS, key=day_key)
        few = jax.tree.map(lambda leaf: leaf[:, -1], path)
        deviation.append(float(jnp.std(few["value"], axis=(1, 2, 3)).mean()))
    say.note(
        f"   standard deviation of height over the globe: {deviation[0]:.0f} m after a "
        f"day, {deviation[9]:.0f} m after 10, {deviation[29]:.0f} m after 30"
    )

    say("the others, and verification")
    ten = jnp.asarray(analyses.height[:, 0])
    undisturbed = run_all(model, ten, STEPS, key=key)
    systems = {
        "control": at_leads(undisturbed[:1]),
        "persistence": np.repeat(analyses.height[:1, :1], len(LEADS), axis=1),
        "dressed persistence": dressed_persistence(
            analyses, settings.members, key=key_of(Purpose.PERTURB, 2)
        ),
        "ten undisturbed": at_leads(undisturbed),
        "physics": at_leads(free),
        "neural": at_leads(neural),
        "physics, assimilated": _only_after(at_leads(assimilated)),
    }
    failed = {
        name: int(ensembles.failed_members(jnp.asarray(fields[:, 1:])).sum())
        for name, fields in systems.items()
    }
    card = scorecard(systems, analyses)
    card.to_csv(folder / "scorecard.csv", index=False, float_format="%.4f")

    say("files and pictures")
    names = {"physics": free, "neural": neural, "physics_assimilated": assimilated}
    dataset = data.forecast_dataset(
        {f"geopotential_height_{name}": value for name, value in names.items()},
        analyses.grid,
        start=analyses.time[0],
        lead_time=STEP_HOURS * np.arange(1, STEPS + 1) * np.timedelta64(1, "h"),
        level=500,
        units=dict.fromkeys((f"geopotential_height_{name}" for name in names), "m"),
        attributes={
            "title": "skyens demo: ensemble forecasts of 500 hPa height",
            "source": f"skyens {skyens.__version__}, settings {asdict(settings)}",
            "comment": "Contains modified Copernicus Climate Change Service "
            "information (ERA5, 2017). " + CAUTION,
        },
    )
    for name in names:
        dataset[f"geopotential_height_{name}"].attrs |= {
            "standard_name": "geopotential_height",
            "long_name": f"500 hPa height, ensemble: {name.replace('_', ', ')}",
        }
    data.write_zarr(dataset, folder / "forecast.zarr", overwrite=True)
    pictures = draw(
        folder,
        systems,
        analyses,
        card,
        np.asarray((corrected["value"] - at_12["value"]).mean(0)),
        observation.coordinates or {},
    )
    say.done()
    _print_results(card, failed)
    print("\nWritten:")
    for path in [folder / "forecast.zarr", folder / "scorecard.csv", *pictures]:
        print(f"  {path}")
    return card


class _Clock:
    """Say what is being done, with a bar over the stages of the whole job."""

    def __init__(self, stages: int):
        from tqdm import tqdm

        self.start = time.perf_counter()
        self.bar = tqdm(total=stages, unit="stage", dynamic_ncols=True, leave=False)
        self.running = False

    def __call__(self, what: str) -> None:
        self.bar.update(int(self.running))
        self.running = True
        self.note(f"[{time.perf_counter() - self.start:5.0f} s] {what}")
        self.bar.set_description(what)

    def note(self, words: str) -> None:
        self.bar.write(words)

    def done(self) -> None:
        self("done")
        self.bar.close()


def _only_after(fields: np.ndarray) -> np.ndarray:
    """Return the leads after the assimilation alone: its own time is no forecast."""
    return np.where((LEADS[0] < LEADS)[None, :, None, None], fields, np.nan)


def _error(states, analyses: Analyses) -> float:
    mean = np.asarray(states["value"]).mean(0)
    weights = region_weights(analyses.grid, "20N-80N")
    square = weights * (mean - analyses.truth[0]) ** 2
    return float(np.sqrt(square.sum() / weights.sum() / mean.shape[-1]))


def _training_words(report: dict, epochs: int) -> str:
    losses = " ".join(f"{loss:.3f}" for loss in report["losses"])
    words = f"   {epochs} epochs, CRPS over a 6 h change's size by epoch: {losses}"
    if report["reused"]:
        words += f"\n   {report['reused']} of them reused from the checkpoint"
    if report["failures"]:
        words += f"\n   {report['failures']} updates failed and changed nothing"
    return words


def _print_results(card: "pandas.DataFrame", failed: dict[str, int]) -> None:
    shown = ["rmse", "crps", "spread", "spread_skill", "anomaly_correlation"]
    for region, rows in card.groupby("region", sort=False):
        print(f"\n500 hPa height, {region} (m)")
        table = rows[["system", "lead_time", *shown]]
        print(table.to_string(index=False, float_format="%.2f", na_rep="-"))
    print(f"\nMembers that failed: {sum(failed.values())}")
    print("\nAims, at the times that nothing was fitted to")
    for words, met in aims(card, ("physics", "neural")):
        print(f"  {'met   ' if met else 'MISSED'}  {words}")
    print(f"\n{CAUTION}")
