"""The curves of a loss drawn with characters, for a terminal. Plotext is used here alone; it has one global figure."""

import math
from collections.abc import Sequence

import pandas as pd
import plotext

from analysis.loss_curves import PUSH_TARGET_DEG, axis_range

_HEIGHT = 17
_MARKERS = ("braille", "·", "x")
_TITLES = {
    "logit": "target logit T",
    "gradient": "pull −∂L/∂cos θ",
    "push": f"push ∂L/∂cos θ_j, target at {PUSH_TARGET_DEG}°",
}


def terminal_plot(curves: pd.DataFrame, *, width: int) -> str:
    """T and the pull by target angle, or pull and push for a loss without a target logit, `width` columns wide.

    Takes a frame of `loss_curves.curves`; up to three lines have characters of their own, named below. No colours.
    """
    columns = ["logit", "gradient"] if curves["logit"].notna().any() else ["gradient", "push"]
    names = list(dict.fromkeys(curves["loss"]))
    marks = ("⣀", *_MARKERS[1:])
    legend = "   ".join(f"{mark} {name}" for mark, name in zip(marks, names, strict=False))
    return _draw(curves, columns, names, width) + (f"\n{legend}" if len(names) > 1 else "")


def _draw(curves: pd.DataFrame, columns: Sequence[str], names: Sequence[str], width: int) -> str:
    figure = plotext.figure
    figure.clear()
    figure.subplots(1, len(columns))
    for index, column in enumerate(columns):
        panel = figure.subplot(1, index + 1)
        panel.plot_size(width // len(columns), _HEIGHT)
        panel.theme("colorless")
        low, high = axis_range(curves, column)
        for marker, name in reversed([*zip(_MARKERS, names, strict=False)]):  # what is drawn last lies on top
            part = curves[(curves["loss"] == name) & curves[column].between(low, high)]
            signal = panel.signal(part["theta_deg"].tolist(), part[column].tolist(), marker=marker)
            panel.draw(signal.lines() or signal)
        panel.title(_TITLES[column])
        panel.label("angle (degrees)")
        panel.ruler("x").lim(0, 180)
        panel.ruler("x").ticks([0, 45, 90, 135, 180])
        panel.ruler("y").lim(low, high)
        ticks = _round_numbers(low, high)
        panel.ruler("y").ticks(ticks, [f"{tick:g}" for tick in ticks])
    figure.plot_size(width, _HEIGHT)
    drawn = str(figure.build().string(colorless=True))
    figure.clear()
    return "\n".join(line.rstrip() for line in drawn.rstrip("\n").split("\n"))


def _round_numbers(low: float, high: float) -> list[float]:
    """A few round numbers between two."""
    power = 10.0 ** math.floor(math.log10(high - low))
    step = next(step for step in (power / 5, power / 2, power, 2 * power) if (high - low) / step <= 6)
    return [round(index * step, 6) for index in range(math.ceil(low / step), math.floor(high / step) + 1)]
