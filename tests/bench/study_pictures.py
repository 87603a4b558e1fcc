"""Pictures of the study, from its rows: how the arms did, what was found, and whether the reward told.

S searches or trainings; angles in degrees.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from search_space import LossSchedule, LossSpec, catalog, target_logit
from tests.bench.study_arms import CONSTANT, Arm, DataSet, Floats

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
KNOWN = {"CosFace .35": catalog.cosface(margin=0.35, scale=32), "ArcFace .5": catalog.arcface(margin_rad=0.5, scale=32)}
ANGLE = 45.0
"""Where a trajectory's margin is taken."""


def margin(spec: LossSpec, degrees: Floats | Sequence[float]) -> Floats | None:
    """cos θ − T(θ)/s, what a loss takes off the target's cosine; None for one without target logit or constant s."""
    scale = getattr(spec.scale, "value", None)
    if not isinstance(scale, float):
        return None
    cos_N = torch.tensor(np.cos(np.radians(degrees)), dtype=torch.float64)
    try:
        target_N = target_logit(spec, cos_N, num_classes=300)
    except ValueError:
        return None
    return np.asarray((cos_N - target_N / scale).numpy(), dtype=np.float64)


def searched(data: DataSet) -> dict[str, list[LossSchedule]]:
    """What each kind of search found, by its seeds."""
    names = [name for name, search in data.study.searches.items() if not search.control]
    found = {name: [LossSchedule.model_validate(row["schedule"]) for row in data.of("search", name)] for name in names}
    return {name: schedules for name, schedules in found.items() if schedules}


def draw_arms(data: DataSet, arms: Sequence[Arm], to: Path) -> None:
    """Test scores with intervals, and those of each unit; arms below half the median are named, not drawn."""
    middle = float(np.median([arm.score_U.mean() for arm in arms])) / 2
    far = [f"{arm.name} ({arm.score_U.mean():.3f})" for arm in arms if arm.score_U.mean() < middle]
    ordered = sorted((a for a in arms if a.score_U.mean() >= middle), key=lambda arm: float(arm.score_U.mean()))
    figure = Figure(figsize=(9, 1 + 0.3 * len(ordered)), layout="constrained")
    axes = figure.subplots()
    for place, arm in enumerate(ordered):
        own = arm.estimate(data.clusters)
        needs_search = arm.name not in data.study.baselines and not arm.name.endswith(CONSTANT)
        axes.plot([own.low, own.high], [place, place], color="#bbbbbb", linewidth=5, solid_capstyle="butt")
        axes.plot(arm.score_U, [place] * len(arm.score_U), "|", color="#666666", markersize=8)
        axes.plot(own.mean, place, "o" if needs_search else "s", color="#0072b2" if needs_search else "#d55e00")
    axes.set_yticks(range(len(ordered)), [f"{arm.name} ({len(arm.score_U)})" for arm in ordered])
    axes.set_ylim(-0.6, len(ordered) - 0.4)
    axes.set_xlabel(f"{data.metric} on the sealed test: mean, 95 % interval, units")
    left_out = f"\nfar below, not drawn: {', '.join(far)}" if far else ""
    axes.set_title(f"found by a search: blue discs; needs none: red squares{left_out}", fontsize=10)
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(to, dpi=110)


def draw_found(data: DataSet, to: Path) -> None:
    """The last loss of every search against known ones, and how margins moved over the epochs."""
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    curves, trajectories = figure.subplots(1, 2)
    degrees = np.linspace(0, 120, 121)
    epochs = range(int(data.plan["recipe"]["horizon_epochs"]))
    for (name, schedules), colour in zip(searched(data).items(), COLOURS, strict=False):
        _lines(curves, degrees, [margin(each.at(epochs[-1]), degrees) for each in schedules], colour, name)
        moves = [[margin(each.at(epoch), [ANGLE]) for epoch in epochs] for each in schedules]
        known = [[float(at[0]) for at in move if at is not None] for move in moves]
        _lines(trajectories, epochs, [m if len(m) == len(epochs) else None for m in known], colour, name)
    for (name, spec), style in zip(KNOWN.items(), ("--", ":"), strict=True):
        taken, at = margin(spec, degrees), margin(spec, [ANGLE])
        if taken is not None and at is not None:
            curves.plot(degrees, taken, style, color="black", label=name)
            trajectories.axhline(float(at[0]), linestyle=style, color="black", label=name)
    curves.set(xlabel="angle to the own class weight, degrees", title="cos θ − T/s: the margin of what was found")
    curves.set_ylim(-0.15, 0.75)
    trajectories.set(xlabel="epoch", title=f"the margin at {ANGLE:g}° over the training")
    trajectories.set_ylim(-0.15, 0.75)
    for axes in (curves, trajectories):
        axes.grid(alpha=0.3)
    curves.legend(fontsize=8)
    figure.savefig(to, dpi=110)


def _lines(axes: Axes, x: Any, lines: Sequence[Any], colour: str, name: str) -> None:
    shown = [line for line in lines if line is not None]
    for place, line in enumerate(shown):
        axes.plot(
            x, line, color=colour, linewidth=1.2, alpha=0.8, label=f"{name} ({len(shown)})" if not place else None
        )


def draw_reward(data: DataSet, trainings: Mapping[str, Sequence[tuple[float, float]]], to: Path) -> None:
    """Reward on the choice half against the tested score of each training."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for place, (name, points) in enumerate(trainings.items()):
        x_S, y_S = zip(*points, strict=True)
        marker = "o" if name in data.study.searches else "s"
        axes.plot(x_S, y_S, marker, color=COLOURS[place % len(COLOURS)], alpha=0.75, label=name, markersize=5)
    axes.set(xlabel=f"{data.reward} on the choice half of validation", ylabel=f"{data.metric} on the test")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    figure.savefig(to, dpi=110)
