"""Made-up journals: events that look like a search's, from a seed, without any training."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lfs.journal import Asked, Event, Finished, Journal, Retried, Started, Told
from lfs.trial import Trial
from search_space import LossSchedule, LossSpec, catalog
from search_space.parts import ConstantScale, ModulatingTarget
from trainers.outcome import Outcome

IMAGES_PER_EPOCH = 12_000
SCALE = 16.0
BASELINES: Mapping[str, tuple[LossSpec, float]] = {
    "adacos-dynamic": (catalog.adacos_dynamic(), 0.519),
    "adacos-fixed": (catalog.adacos_fixed(), 0.522),
    "p2sgrad": (catalog.p2sgrad(), 0.081),
    "p2sgrad-recipe": (catalog.p2sgrad(weight=10), 0.471),
    "softmax": (catalog.softmax(scale=SCALE), 0.516),
    "cosface": (catalog.cosface(margin=0.2, scale=SCALE), 0.548),
    "arcface": (catalog.arcface(margin_rad=0.3, scale=SCALE), 0.561),
}


def modulating(u: float) -> LossSpec:
    """The loss of a search trial."""
    return LossSpec(target=ModulatingTarget(u=u), scale=ConstantScale(value=SCALE))


def started(**config: object) -> Started:
    """A first event; `config` replaces parts of the usual one."""
    usual = {
        "seed": 0,
        "recipe": {"horizon_epochs": 6, "reward": "tar_at_far_1e-3", "width": 32, "learning_rate": 0.1},
        "search": {"method": "reinforce", "rounds": 6, "copies": 6, "workers": None},
        "space": {"kind": "modulating_factor", "scale": SCALE, "margin_high": 0.6},
    }
    return Started(
        time=1_795_000_000.0,
        search_id="c0ffee12",
        config={**usual, **config},
        data={"name": "glyphs", "kind": "drawing", "digest": "ab12cd34", "train_classes": 300, "train_images": 12_000},
        versions={"lossearch": "0.1.0", "torch": "2.13.0"},
        numerics={"dtype": "float32", "threads": 1},
    )


def scores(level: float, rng: np.random.Generator) -> dict[str, float]:
    """Every metric of one epoch for a network whose TAR@FAR 1e-3 is about `level`."""
    row: dict[str, float] = {}
    for half, shift in (("reward", 0.0), ("choice", -0.008), ("val", -0.004)):
        tar = float(np.clip(level + shift + rng.normal(0, 0.006), 0.001, 0.999))
        row |= {f"{half}/tar_at_far_1e-{k}": tar ** (0.2 * k + 0.4) for k in (1, 2, 4)}
        row |= {f"{half}/tar_at_far_1e-3": tar, f"{half}/eer": 0.09 * (1 - tar), f"{half}/auc": 1 - 0.04 * (1 - tar)}
        row[f"{half}/rank1"] = min(1.0, 0.6 + 0.5 * tar)
    return row


def outcome(level: float, first: int, last: int, rng: np.random.Generator, **more: str) -> Outcome:
    """The outcome of training epochs `first`..`last` (1-based) up to a final TAR of about `level`."""
    history = []
    for epoch in range(first, last + 1):
        at = level * (1 - 0.5**epoch) / (1 - 0.5**last) if first != last else level
        history.append(
            {"epoch": float(epoch), **scores(at, rng), "train/loss": 4.0 / (epoch + 0.5) + rng.normal(0, 0.02)}
        )
    images = IMAGES_PER_EPOCH * (last - first + 1)
    metrics = {key: value for key, value in history[-1].items() if key != "epoch"} | {"cost/images": float(images)}
    return Outcome(
        reward=metrics["reward/tar_at_far_1e-3"],
        metrics=metrics,
        history=tuple(history),
        seconds=8.0 * (last - first + 1) * float(rng.uniform(0.9, 1.1)),
        images=images,
        **more,
    )


def failed(error: str, images: int = 4_000) -> Outcome:
    """An outcome without a reward."""
    return Outcome(reward=None, error=error, seconds=2.5, images=images)


class Clock:
    """Times that rise by a few seconds an event."""

    def __init__(self) -> None:
        self.now = started().time

    def tick(self, seconds: float = 3.0) -> float:
        """The next time."""
        self.now += seconds
        return self.now


def baseline_events(clock: Clock, rng: np.random.Generator) -> list[Event]:
    """One ask of the seven baselines, and their outcomes."""
    trials = [
        Trial(
            number=number,
            schedule=LossSchedule.constant(spec),
            seed=0,
            epochs=6,
            role="baseline",
            name=name,
            recipe={"learning_rate": 0.3} if name == "p2sgrad-recipe" else {},
        )
        for number, (name, (spec, _)) in enumerate(BASELINES.items())
    ]
    events: list[Event] = [Asked(time=clock.tick(), count=len(trials), trials=tuple(trials))]
    for trial in trials:
        level = BASELINES[trial.name][1]
        collapse = {"collapse": "all cosines stayed near 0"} if trial.name == "p2sgrad" else {}
        events.append(Told(time=clock.tick(24), trial=trial.number, outcome=outcome(level, 1, 6, rng, **collapse)))
    return events


def search_events(
    clock: Clock, rng: np.random.Generator, *, rounds: int, copies: int, level: float, error: str, all_fail: bool
) -> list[Event]:
    """Rounds of `copies` one-epoch trials, each from the best of the round before; trial 20 fails, 13 is retried."""
    events: list[Event] = []
    number, parent, best_u = len(BASELINES), None, 5.0
    schedule: LossSchedule | None = None
    for index in range(rounds):
        mu, sigma = 4.0 + 0.25 * index, 2.0 * 0.72**index
        values = np.clip(rng.normal(mu, sigma, copies), 0, 9.6)
        specs = [modulating(float(u)) for u in values]
        schedules = [LossSchedule.constant(s) if schedule is None else schedule.then(index, s) for s in specs]
        trials = [
            Trial(number=number + i, schedule=each, seed=index, epochs=index + 1, parent=parent, round=index)
            for i, each in enumerate(schedules)
        ]
        number += copies
        summary = {"mu/u": mu, "sigma/u": sigma, "round": float(index)}
        events.append(Asked(time=clock.tick(), count=copies, trials=tuple(trials), summary=summary))
        rewards: dict[int, float] = {}
        for trial, u in zip(trials, values, strict=True):
            if trial.number == 13:
                events.append(Retried(time=clock.tick(), trial=13, attempt=1, reason="worker 7312 was lost"))
            at = level * (1 - 0.5 ** (index + 1)) / (1 - 0.5**rounds) - 0.002 * (float(u) - best_u) ** 2
            fails = all_fail or trial.number == 20
            told = failed(error) if fails else outcome(at, index + 1, index + 1, rng)
            events.append(Told(time=clock.tick(8), trial=trial.number, outcome=told))
            rewards |= {} if told.reward is None else {trial.number: told.reward}
        if rewards:
            parent = max(rewards, key=rewards.__getitem__)
            schedule = next(trial.schedule for trial in trials if trial.number == parent)
    return events


def search_journal(
    *,
    rounds: int = 6,
    copies: int = 6,
    seed: int = 0,
    level: float = 0.57,
    finished: bool = True,
    all_fail: bool = False,
    error: str = "ValueError: the loss is not finite at batch 17",
) -> list[Event]:
    """A whole search: seven baselines (one collapses), and `rounds` × `copies` trials that end at about `level`.

    One trial fails, one is retried.
    """
    rng, clock = np.random.default_rng(seed), Clock()
    events: list[Event] = [started(), *baseline_events(clock, rng)]
    events += search_events(clock, rng, rounds=rounds, copies=copies, level=level, error=error, all_fail=all_fail)
    last = [trial for event in events if isinstance(event, Asked) for trial in event.trials][-copies:]
    told = {event.trial: event.outcome for event in events if isinstance(event, Told)}
    choice = {t.number: told[t.number].metrics.get("choice/tar_at_far_1e-3", -1.0) for t in last}
    winner = None if all_fail else max(choice, key=choice.__getitem__)
    summary = {"mu/u": 5.5, "sigma/u": 0.3, "round": float(rounds)}
    end = Finished(time=clock.tick(), winner=winner, summary=summary, constant=modulating(5.5))
    return [*events, end] if finished else events


def sampled_journal(candidates: Sequence[LossSchedule], **config: object) -> list[Event]:
    """A search that trains each candidate for the whole horizon; the last one wins."""
    rng, clock = np.random.default_rng(0), Clock()
    events: list[Event] = [started(search={"method": "sampler"}, **config)]
    for number, schedule in enumerate(candidates):
        trial = Trial(number=number, schedule=schedule, seed=0, epochs=6)
        told = outcome(0.3 + 0.2 * number / len(candidates), 1, 6, rng)
        events += [
            Asked(time=clock.tick(), count=1, trials=(trial,)),
            Told(time=clock.tick(), trial=number, outcome=told),
        ]
    return [*events, Finished(time=clock.tick(), winner=len(candidates) - 1)]


def write_journal(run_dir: Path, events: list[Event]) -> Path:
    """Write the events as the journal of a run folder."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with Journal(run_dir) as journal:
        for event in events:
            journal.append(event)
    return run_dir
