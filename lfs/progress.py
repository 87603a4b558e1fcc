"""The live view of a search: a table that redraws itself in a terminal, one line an outcome elsewhere."""

import time
from collections import Counter
from types import TracebackType

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from lfs.journal import Asked, Event, Examined, Rebuilt, Resumed, Retried, Started, Told
from lfs.trial import Trial
from trainers.outcome import Outcome

SHOWN_BASELINES = 8


def label(trial: Trial) -> str:
    """What to call a trial."""
    if trial.name:
        return trial.name
    if trial.repeats is not None:
        return f"trial {trial.number}, final of trial {trial.repeats}"
    return f"trial {trial.number}" if trial.round is None else f"trial {trial.number}, round {trial.round}"


class Progress:
    """Follows a search event by event. A context manager: the terminal is redrawn while it is open.

    `epochs` is what the search will train in all, for the time left.
    """

    def __init__(self, console: Console, *, epochs: int, metric: str) -> None:
        self._console = console
        self._epochs = epochs
        self._metric = metric
        self._trials: dict[int, Trial] = {}
        self._outcomes: dict[int, Outcome] = {}
        self._summary: dict[str, float] = {}
        self._epochs_done = self._epochs_before = 0
        self._retries = 0
        self._verdicts: dict[int, Examined] = {}
        self._since = time.monotonic()
        self._live = (
            Live(get_renderable=self._render, console=console, refresh_per_second=2) if _redraws(console) else None
        )

    def __enter__(self) -> "Progress":
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def on_event(self, event: Event) -> None:
        """Take in one event of the journal."""
        if isinstance(event, Asked):
            self._trials |= {trial.number: trial for trial in event.trials}
            self._summary = dict(event.summary)
        elif isinstance(event, Told):
            self._on_told(event)
        elif isinstance(event, Examined):
            self._verdicts[event.trial] = event
            if event.trained:
                warning = "warning: " if event.verdict == "warned" else ""
                self._line(f"{label(self._trials[event.trial])}: {warning}{event.reason}")
        elif isinstance(event, Retried):
            self._retries += 1
            self._line(
                f"{label(self._trials[event.trial])}: attempt {event.attempt} lost ({event.reason}), trying again"
            )
        elif isinstance(event, Rebuilt):
            self._line(f"{label(self._trials[event.trial])}: checkpoint rebuilt")
        elif isinstance(event, Started | Resumed):
            self._begin(event)

    def _begin(self, event: Started | Resumed) -> None:
        """A session starts: what came before does not tell how fast this one is."""
        self._since, self._epochs_before = time.monotonic(), self._epochs_done
        if isinstance(event, Started):
            data = event.data
            self._line(
                f"{data['name']}: {data['train_classes']} classes, {data['train_images']} images to train on; "
                f"reward {self._metric} on {data['reward_classes']} other identities; "
                f"arithmetic {event.numerics['dtype']}, {event.numerics['threads']} thread(s) a worker"
            )

    def _on_told(self, event: Told) -> None:
        trial, outcome = self._trials[event.trial], event.outcome
        self._outcomes[event.trial] = outcome
        epochs = trial.epochs_of_its_own(self._trials)
        self._epochs_done += epochs
        verdict = self._verdicts.get(event.trial)
        result = f"failed: {outcome.error}" if outcome.reward is None else f"reward {outcome.reward:.4f}"
        if verdict is not None and not verdict.trained:
            self._epochs_before += epochs  # they took no time
            taken = f"{result}, that of trial {verdict.original}"
            result = str(outcome.error) if verdict.original is None else taken
        collapse = f" ({outcome.collapse})" if outcome.collapse else ""
        self._line(
            f"{label(trial)}: {result}{collapse}, {outcome.seconds:.1f} s; {len(self._outcomes)} trials done, "
            f"{self._time_left()}"
        )

    def _line(self, text: str) -> None:
        if not self._live:
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _time_left(self) -> str:
        done = self._epochs_done - self._epochs_before
        if not done:
            return "time left unknown"
        seconds = (time.monotonic() - self._since) / done * max(0, self._epochs - self._epochs_done)
        return f"about {seconds / 60:.0f} min left" if seconds >= 90 else f"about {seconds:.0f} s left"

    def _render(self) -> RenderableType:
        facts = Table.grid(padding=(0, 2))
        running = [trial for number, trial in self._trials.items() if number not in self._outcomes]
        facts.add_row("trials", f"{len(self._outcomes)} done, {len(running)} running{self._failures()}")
        facts.add_row("running", ", ".join(label(trial) for trial in running[:6]) or "–")
        facts.add_row("best so far", self._best())
        facts.add_row("controller", self._controller())
        facts.add_row("time left", self._time_left())
        facts.add_row("baselines", self._baselines())
        facts.add_row("epochs", ProgressBar(total=self._epochs, completed=self._epochs_done, width=60))
        return facts

    def _failures(self) -> str:
        rejected = {number for number, event in self._verdicts.items() if event.verdict == "rejected"}
        errors = [o.error for number, o in self._outcomes.items() if o.error and number not in rejected]
        causes = Counter(error.split(":")[0] for error in errors)
        parts = [f"{count} failed ({cause})" for cause, count in causes.most_common(3)]
        verdicts = Counter(event.verdict for event in self._verdicts.values())
        parts += [f"{count} {verdict}" for verdict, count in sorted(verdicts.items())]
        if self._retries:
            parts.append(f"{self._retries} retried")
        return "".join(f", {part}" for part in parts)

    def _best(self) -> str:
        scores = {
            number: outcome.reward
            for number, outcome in self._outcomes.items()
            if outcome.reward is not None and self._trials[number].role == "search"
        }
        if not scores:
            return "–"
        number = max(scores, key=lambda n: scores[n])
        return f"{self._metric} {scores[number]:.4f} ({label(self._trials[number])})"

    def _controller(self) -> str:
        means = [
            f"{name.removeprefix('mu/')} {value:.3g} ± {self._summary.get('sigma/' + name.removeprefix('mu/'), 0):.2g}"
            for name, value in self._summary.items()
            if name.startswith("mu/")
        ]
        head = [f"round {self._summary['round']:.0f}"] if "round" in self._summary else []
        return ", ".join(head + means) or "–"

    def _baselines(self) -> str:
        done = [
            f"{self._trials[n].name} {o.reward:.4f}"
            for n, o in self._outcomes.items()
            if self._trials[n].role == "baseline" and o.reward is not None
        ]
        return ", ".join(done[:SHOWN_BASELINES]) or "–"


def _redraws(console: Console) -> bool:
    return console.is_terminal and not console.is_dumb_terminal
