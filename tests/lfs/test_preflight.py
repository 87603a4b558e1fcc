"""The pre-flight filter in a search: what it says of trials, and what becomes of them."""

import io
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

import lfs.preflight
from analysis import failures_table, leaderboard, search_totals, trials_table
from lfs.checkpoints import CheckpointStore
from lfs.controller import Controller, WithBaselines
from lfs.executor import Runner, SerialExecutor
from lfs.fixed_list import FixedList, NamedSchedule
from lfs.journal import (
    FILE_NAME,
    Asked,
    Event,
    Examined,
    Finished,
    Journal,
    JournalError,
    Rebuilt,
    Resumed,
    Told,
    comparable,
    read_events,
)
from lfs.preflight import Preflight
from lfs.progress import Progress
from lfs.samplers import Objective
from lfs.search import IDENTICAL_FAILURES, SearchStoppedError, search
from lfs.trial import Trial
from lfs.winner import best_at_horizon
from search_space import LossSchedule, LossSpec, catalog
from search_space.parts import (
    CombinedTarget,
    ConstantMargin,
    ConstantScale,
    ModulatingBinsTarget,
    ModulatingTarget,
)
from tests.lfs.command import TINY_SEARCH, lossearch
from tests.lfs.toy import CONTROLLERS, HORIZON_EPOCHS, RecordingRunner, started
from trainers.outcome import Outcome
from trainers.recipe import Recipe

COUNTS = [3 + index for index in range(8)]
SOFTMAX = catalog.softmax(scale=16)
COSFACE = catalog.cosface(margin=0.2, scale=16)
MODULATING = LossSpec(target=ModulatingTarget(u=3.2), scale=ConstantScale(value=16))
ADACOS = catalog.adacos_dynamic()
ADACOS_REWRITTEN = ADACOS.replace(target=CombinedTarget(), margin=ConstantMargin())
ARCFACE = catalog.arcface(scale=16)
INFINITE = LossSpec(target=ModulatingTarget(u=3.2), scale=ConstantScale(value=1e-40))
FALLING = catalog.am_lfs_free([-1.0] * 4, [0.0] * 4, [1.0] * 4, [0.0] * 4, scale=16)


def trial(number: int, spec: LossSpec, **changes: object) -> Trial:
    usual = Trial(number=number, schedule=LossSchedule.constant(spec), seed=0, epochs=1)
    return replace(usual, **changes)  # type: ignore[arg-type]


def verdicts(*trials: Trial) -> list[tuple[int, str, int | None]]:
    """What a fresh filter says of these trials, one after the other: (trial, verdict, same_as)."""
    preflight = Preflight(COUNTS)
    said = [preflight.examine(each, {}) for each in trials]
    return [(each.trial, each.verdict, each.same_as) for each in said if each is not None]


class Scripted:
    """Asks for rounds of trials, each round when the one before is told."""

    def __init__(self, rounds: Sequence[Sequence[Trial]]) -> None:
        self._rounds = [list(each) for each in rounds]
        self._live: frozenset[int] = frozenset()
        self._out: set[int] = set()

    def ask(self, count: int) -> Sequence[Trial]:
        if self._rounds and not self._rounds[0] and not self._out:
            self._rounds.pop(0)
        if not self._rounds:
            return []
        asked, self._rounds[0] = self._rounds[0][:count], self._rounds[0][count:]
        self._live |= {each.number for each in asked}
        self._out |= {each.number for each in asked}
        return asked

    def tell(self, trial: Trial, outcome: Outcome) -> None:
        self._out.discard(trial.number)

    def live(self) -> frozenset[int]:
        return self._live

    def summary(self) -> dict[str, float]:
        return {}

    def constant(self) -> None:
        return None


def two_rounds() -> Controller:
    """In the first round 1 is rejected, 2 reused and 3 warned of; the second continues the reused one to the end."""
    first = [trial(0, COSFACE), trial(1, INFINITE), trial(2, MODULATING), trial(3, catalog.p2sgrad())]
    parent = first[2]

    def child(number: int, spec: LossSpec) -> Trial:
        return trial(number, spec, schedule=parent.schedule.then(1, spec), epochs=HORIZON_EPOCHS, parent=2)

    second = [child(4, MODULATING), child(5, ARCFACE), child(6, COSFACE), child(7, FALLING), child(8, SOFTMAX)]
    return Scripted([first, second])


class WideExecutor(SerialExecutor):
    """Serial, but takes three trials at once."""

    def __init__(self, runner: Runner) -> None:
        super().__init__(runner)
        self.slots = 3


def run(
    folder: Path,
    controller: Controller,
    runner: RecordingRunner | None = None,
    *,
    executor: type[SerialExecutor] = SerialExecutor,
    preflight: bool = True,
) -> list[Event]:
    """Search or resume in a folder; returns its events."""
    folder.mkdir(exist_ok=True)
    with Journal(folder) as journal:
        journal.append(Resumed(versions={}) if len(journal) else started())
        search(
            controller,
            executor(runner or RecordingRunner()),
            journal,
            CheckpointStore(folder / "checkpoints"),
            choose=best_at_horizon(Recipe(horizon_epochs=HORIZON_EPOCHS)),
            preflight=Preflight(COUNTS) if preflight else None,
        )
        return list(journal)


def essence(events: list[Event]) -> list[object]:
    """What a cut and resumed search must have in common with one that ran through."""
    return [comparable(event) for event in events if not isinstance(event, Resumed | Rebuilt)]


def outcomes(events: list[Event]) -> dict[int, Outcome]:
    return {event.trial: event.outcome for event in events if isinstance(event, Told)}


def examined(events: list[Event]) -> dict[int, Examined]:
    return {event.trial: event for event in events if isinstance(event, Examined)}


# What the filter says


def test_the_same_gradients_from_the_same_start_in_the_same_way_are_reused() -> None:
    assert verdicts(trial(0, COSFACE), trial(1, MODULATING)) == [(1, "reused", 0)]
    assert verdicts(trial(0, COSFACE), trial(1, COSFACE)) == [(1, "reused", 0)]
    assert verdicts(trial(0, MODULATING), trial(1, COSFACE), trial(2, MODULATING)) == [
        (1, "reused", 0),
        (2, "reused", 0),
    ]


@pytest.mark.parametrize(
    ("change", "differs_in"),
    [
        ({"seed": 1}, "seed"),
        ({"epochs": 2}, "epochs"),
        ({"recipe": {"learning_rate": 0.2}}, "recipe"),
        ({"role": "baseline", "name": "b"}, "role"),
        ({"parent": 0}, "epochs, parent"),
    ],
)
def test_the_same_gradients_trained_otherwise_are_only_noted(change: dict[str, object], differs_in: str) -> None:
    if "parent" in change:
        change = {**change, "epochs": 3}
    preflight = Preflight(COUNTS)
    assert preflight.examine(trial(0, COSFACE), {}) is None
    said = preflight.examine(trial(1, MODULATING, **change), {})
    assert said is not None
    assert (said.verdict, said.same_as) == ("noted", 0)
    assert said.reason == f"equivalent to trial 0: the same gradients; it differs in {differs_in}"


def test_every_loss_that_is_still_to_come_must_match() -> None:
    later = {"schedule": LossSchedule.constant(COSFACE).then(1, ARCFACE), "epochs": 3}
    twin = {"schedule": LossSchedule.constant(MODULATING).then(1, ARCFACE), "epochs": 3}
    other = {"schedule": LossSchedule.constant(MODULATING).then(1, SOFTMAX), "epochs": 3}
    sooner = {"schedule": LossSchedule.constant(MODULATING).then(2, ARCFACE), "epochs": 3}
    assert verdicts(trial(0, COSFACE, **later), trial(1, COSFACE, **twin)) == [(1, "reused", 0)]
    assert verdicts(trial(0, COSFACE, **later), trial(1, COSFACE, **other)) == [(1, "noted", 0)]
    assert verdicts(trial(0, COSFACE, **later), trial(1, COSFACE, **sooner)) == [(1, "noted", 0)]


def test_what_the_parent_was_trained_with_does_not_count() -> None:
    root = trial(0, SOFTMAX)
    children = [
        replace(trial(number, spec, parent=0, epochs=2), schedule=root.schedule.then(1, spec))
        for number, spec in ((1, COSFACE), (2, MODULATING))
    ]
    assert verdicts(root, *children) == [(2, "reused", 1)]


def test_bins_of_the_probability_that_no_probe_falls_into_are_noted_and_not_reused() -> None:
    u = (0.5,) * 10
    one, other = (
        LossSpec(target=ModulatingBinsTarget(u=each), scale=ConstantScale(value=512))
        for each in (u, (*u[:4], 0.55, *u[5:]))
    )
    preflight = Preflight(COUNTS)
    assert preflight.examine(trial(0, one), {}) is None
    said = preflight.examine(trial(1, other), {})
    assert said is not None
    assert (said.verdict, said.same_as) == ("noted", 0)
    assert said.reason == "equivalent to trial 0: the same gradients on all probes"
    again = preflight.examine(trial(2, one), {})
    assert again is not None
    assert (again.verdict, again.same_as) == ("reused", 0)


@pytest.mark.parametrize(
    ("specs", "later"),
    [((COSFACE, MODULATING), "reused"), ((ADACOS, ADACOS_REWRITTEN), "noted")],
    ids=["without a state", "with a state"],
)
def test_a_state_that_is_taken_over_is_noted_and_not_reused(specs: tuple[LossSpec, LossSpec], later: str) -> None:
    root = trial(0, SOFTMAX)
    fresh = [trial(number, spec) for number, spec in enumerate(specs, 1)]
    assert verdicts(root, *fresh)[-1] == (2, "reused", 1)
    switched = [trial(n, SOFTMAX, schedule=root.schedule.then(1, spec), epochs=2) for n, spec in enumerate(specs, 1)]
    assert verdicts(root, *switched)[-1] == (2, later, 1)
    continued = [replace(each, parent=0) for each in switched]
    assert verdicts(root, *continued)[-1] == (2, later, 1)


def test_a_factor_is_noted_with_its_size() -> None:
    preflight = Preflight(COUNTS)
    preflight.examine(trial(0, SOFTMAX), {})
    said = preflight.examine(trial(1, SOFTMAX.replace(weight=2)), {})
    assert said is not None
    assert (said.verdict, said.same_as) == ("noted", 0)
    assert said.reason == "equivalent to trial 0: its gradients times 2"


def test_a_loss_asked_again_under_its_own_name_is_no_finding() -> None:
    again = [trial(number, COSFACE, seed=number) for number in range(3)]
    assert verdicts(*again, trial(3, MODULATING, seed=5), trial(4, MODULATING, seed=6)) == [(3, "noted", 0)]


def test_p2sgrad_is_warned_of_and_a_falling_free_form_loss_rejected() -> None:
    assert verdicts(trial(0, catalog.p2sgrad()), trial(1, FALLING)) == [(0, "warned", None), (1, "rejected", None)]


def test_a_baseline_is_neither_rejected_nor_given_anothers_outcome() -> None:
    baselines = [trial(n, spec, role="baseline", name=str(n)) for n, spec in enumerate((INFINITE, COSFACE, MODULATING))]
    assert verdicts(*baselines) == [(0, "warned", None), (2, "noted", 1)]
    assert verdicts(*baselines, trial(3, INFINITE), trial(4, COSFACE)) == [
        (0, "warned", None),
        (2, "noted", 1),
        (3, "rejected", None),
    ]


# What becomes of the trials


def as_its_twins(outcome: Outcome) -> Outcome:
    costs = {"cost/seconds": outcome.seconds, "cost/images": float(outcome.images)}
    return replace(outcome, metrics={**outcome.metrics, **costs}, seconds=0.0, images=0)


def test_the_rejected_are_told_as_failures_and_the_reused_as_their_original(tmp_path: Path) -> None:
    runner = RecordingRunner()
    events = run(tmp_path / "a", two_rounds(), runner)
    said = {number: (each.verdict, each.same_as) for number, each in examined(events).items()}
    assert said == {
        1: ("rejected", None),
        2: ("reused", 0),
        3: ("warned", None),
        6: ("reused", 4),
        7: ("rejected", None),
    }
    told = outcomes(events)
    assert runner.ran == [0, 3, 4, 5, 8]
    assert told[1].error == f"rejected before training: {examined(events)[1].reason}"
    assert "not finite in float32" in told[1].error
    assert (told[1].seconds, told[1].images) == (0, 0)
    assert told[2] == as_its_twins(told[0])
    for cost in ("seconds", "images"):
        assert Objective(metric=cost).of(told[2]) == Objective(metric=cost).of(told[0]) > 0
    assert told[0].images == 100
    assert isinstance(events[-1], Finished)
    kinds = [type(event).__name__ for event in events[:9]]
    assert kinds == ["Started", "Asked", "Told", "Asked", "Examined", "Told", "Asked", "Examined", "Told"]


@pytest.mark.parametrize("executor", [SerialExecutor, WideExecutor])
@pytest.mark.parametrize("with_checkpoints", [False, True])
def test_resume_after_any_event_gives_the_same_journal(
    executor: type[SerialExecutor], with_checkpoints: bool, tmp_path: Path
) -> None:
    whole = run(tmp_path / "whole", two_rounds(), executor=executor)
    lines = (tmp_path / "whole" / FILE_NAME).read_bytes().splitlines(keepends=True)
    assert sum(isinstance(event, Examined) for event in whole) == 5
    for cut in range(1, len(lines)):
        folder = tmp_path / f"cut{cut}"
        folder.mkdir()
        if with_checkpoints:
            shutil.copytree(tmp_path / "whole" / "checkpoints", folder / "checkpoints")
        (folder / FILE_NAME).write_bytes(b"".join(lines[:cut]))
        resumed = run(folder, two_rounds(), executor=executor)
        assert essence(resumed) == essence(whole)
        assert all(event.same for event in resumed if isinstance(event, Rebuilt))


def test_a_search_in_rounds_resumes_to_the_same_journal(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", CONTROLLERS["unified"](0))
    assert examined(whole)
    lines = (tmp_path / "whole" / FILE_NAME).read_bytes().splitlines(keepends=True)
    for cut in range(2, len(lines), 7):
        folder = tmp_path / f"cut{cut}"
        folder.mkdir()
        (folder / FILE_NAME).write_bytes(b"".join(lines[:cut]))
        assert essence(run(folder, CONTROLLERS["unified"](0))) == essence(whole)


def test_a_duplicate_waits_for_an_original_that_is_still_trained(tmp_path: Path) -> None:
    def controller() -> Controller:
        return Scripted([[trial(0, COSFACE, epochs=5), trial(1, MODULATING, epochs=5), trial(2, ARCFACE, epochs=5)]])

    runner = RecordingRunner()
    events = run(tmp_path / "a", controller(), runner, executor=WideExecutor)
    assert [event.trial for event in events if isinstance(event, Told)] == [0, 1, 2]
    assert runner.ran == [0, 2]
    failing = RecordingRunner(failing={0: "diverged: loss is nan"})
    told = outcomes(run(tmp_path / "b", controller(), failing, executor=WideExecutor))
    assert told[1].error == told[0].error == "diverged: loss is nan"


def three_alike() -> Controller:
    """Two twins of trial 0 and another loss, then a third twin."""
    first = [trial(0, COSFACE, epochs=5), trial(1, MODULATING, epochs=5), trial(2, COSFACE, epochs=5)]
    return Scripted([first, [trial(3, MODULATING, epochs=5)]])


@pytest.mark.parametrize(
    ("executor", "waiting"), [(SerialExecutor, []), (WideExecutor, [(1, "reused"), (2, "reused")])]
)
def test_what_the_machine_failed_is_nobodys_original(
    executor: type[SerialExecutor], waiting: list[tuple[int, str]], tmp_path: Path
) -> None:
    runner = RecordingRunner(failing={0: "MemoryError: no room"})
    whole = run(tmp_path / "whole", three_alike(), runner, executor=executor)
    said = [(event.trial, event.verdict) for event in whole if isinstance(event, Examined)]
    noted = [(1, "noted"), (2, "noted")] if waiting else [(1, "noted"), (2, "reused")]
    assert said == [*waiting, *noted, (3, "reused")]
    assert examined(whole)[3].same_as == 1
    assert runner.ran == ([0, 1, 2] if waiting else [0, 1])
    told = outcomes(whole)
    assert [number for number, outcome in told.items() if outcome.error] == [0]
    lines = (tmp_path / "whole" / FILE_NAME).read_bytes().splitlines(keepends=True)
    for cut in range(1, len(lines)):
        folder = tmp_path / f"cut{cut}"
        folder.mkdir()
        (folder / FILE_NAME).write_bytes(b"".join(lines[:cut]))
        again = RecordingRunner(failing={0: "MemoryError: no room"})
        assert essence(run(folder, three_alike(), again, executor=executor)) == essence(whole)


def test_children_of_a_duplicate_start_from_its_originals_checkpoint(tmp_path: Path) -> None:
    seen: dict[int, bytes] = {}

    class Watching(RecordingRunner):
        def __call__(self, trial: Trial, start: object) -> object:  # type: ignore[override]
            if start is not None:
                seen[trial.number] = start.tobytes()  # type: ignore[attr-defined]
            return super().__call__(trial, start)  # type: ignore[arg-type]

    run(tmp_path / "a", two_rounds(), Watching())
    original = CheckpointStore(tmp_path / "a" / "checkpoints").load(0)
    assert original is not None
    assert seen == {4: original.tobytes(), 5: original.tobytes(), 8: original.tobytes()}


def test_verdicts_are_read_back_and_not_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(tmp_path / "whole", two_rounds())
    lines = (tmp_path / "whole" / FILE_NAME).read_bytes().splitlines(keepends=True)
    last_look = max(index for index, event in enumerate(whole) if isinstance(event, Examined | Asked))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a replay examines nothing")

    monkeypatch.setattr(lfs.preflight, "examine", refuse)
    for cut in range(last_look + 2, len(lines)):
        folder = tmp_path / f"cut{cut}"
        folder.mkdir()
        (folder / FILE_NAME).write_bytes(b"".join(lines[:cut]))
        assert essence(run(folder, two_rounds())) == essence(whole)


def test_the_journals_verdict_holds_whatever_would_be_said_today(tmp_path: Path) -> None:
    run(tmp_path / "a", Scripted([[trial(0, COSFACE, epochs=5), trial(1, ARCFACE, epochs=5)]]), executor=WideExecutor)
    path = tmp_path / "a" / FILE_NAME
    lines = path.read_bytes().splitlines(keepends=True)
    verdict = Examined(trial=0, verdict="rejected", reason="the older version knew better")
    path.write_bytes(b"".join(lines[:2]) + verdict.model_dump_json().encode() + b"\n")
    runner = RecordingRunner()
    events = run(tmp_path / "a", Scripted([[trial(0, COSFACE, epochs=5), trial(1, ARCFACE, epochs=5)]]), runner)
    assert outcomes(events)[0].error == "rejected before training: the older version knew better"
    assert runner.ran == [1]


def test_a_journal_without_verdicts_is_resumed(tmp_path: Path) -> None:
    def controller() -> Controller:
        return Scripted([[trial(0, COSFACE), trial(1, MODULATING)], [trial(2, INFINITE), trial(3, ARCFACE, epochs=5)]])

    run(tmp_path / "a", controller(), RecordingRunner(), preflight=False)
    path = tmp_path / "a" / FILE_NAME
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:5]))  # started, asked, told, asked, told: both of the first round
    events = run(tmp_path / "a", controller())
    assert {number: each.verdict for number, each in examined(events).items()} == {2: "rejected"}
    assert outcomes(events)[1].images == 100


def test_a_verdict_on_a_trial_that_was_never_asked_for_is_damage(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.append(started())
        journal.append(Examined(trial=3, verdict="noted", reason="?", same_as=1))
    with pytest.raises(JournalError, match="trial 3 was never asked for"):
        run(tmp_path, two_rounds())


def test_rejections_alike_do_not_stop_a_search(tmp_path: Path) -> None:
    many = [trial(n, INFINITE, epochs=5) for n in range(IDENTICAL_FAILURES + 2)]
    fine = trial(len(many), COSFACE, epochs=5)
    events = run(tmp_path / "a", Scripted([[*many, fine]]))
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert finished.winner == fine.number


def test_failures_alike_stop_a_search_whatever_is_rejected_in_between(tmp_path: Path) -> None:
    specs = [catalog.cosface(margin=0.01 * n) if n % 2 else INFINITE for n in range(20)]
    trials = [trial(n, spec, epochs=5) for n, spec in enumerate(specs)]
    runner = RecordingRunner(failing=dict.fromkeys(range(20), "the disk is full"))
    with pytest.raises(SearchStoppedError, match="5 trials in a row failed alike: the disk is full"):
        run(tmp_path / "a", Scripted([trials]), runner)
    assert runner.ran == [1, 3, 5, 7, 9]


def test_a_search_whose_candidates_are_all_rejected_ends_with_the_reason(tmp_path: Path) -> None:
    def controller() -> Controller:
        baselines = [NamedSchedule(name="softmax", schedule=LossSchedule.constant(SOFTMAX), epochs=HORIZON_EPOCHS)]
        rejected = [trial(0, INFINITE, epochs=5), trial(1, FALLING, epochs=5)]
        return WithBaselines(Scripted([rejected]), FixedList(baselines, seed=0, role="baseline"))

    runner = RecordingRunner()
    wanted = "2 of its 2 candidates were rejected before training, the last one as ∂L/∂cos_y > 0 at cos_y = "
    with pytest.raises(SearchStoppedError, match=wanted):
        run(tmp_path / "a", controller(), runner)
    assert runner.ran == [2]
    with Journal(tmp_path / "a") as journal:
        finished = list(journal)[-1]
    assert isinstance(finished, Finished)
    assert finished.winner is None


THREE_LOSSES = """
baselines = []
[search]
method = "fixed_list"
losses = [
  { loss = "cosface", parameters = { margin = 0.25, scale = 16.0 } },
  { loss = "modulating", parameters = { margin = 0.25, scale = 16.0 } },
  { loss = "am_lfs_free", parameters = { t_slopes = [-1.0], t_offsets = [0.0] } },
]
"""


def test_every_search_of_the_command_line_is_filtered(shapes: Path, here: Path) -> None:
    (here / "run.toml").write_text(THREE_LOSSES)
    tiny = [each for each in TINY_SEARCH if "search." not in each]
    result = lossearch("search", "run.toml", "--data", shapes, "--run", here / "mine", *tiny)
    assert result.code == 0
    events, _ = read_events(here / "mine" / FILE_NAME)
    said = {number: (each.verdict, each.same_as) for number, each in examined(events).items()}
    reused = next(number for number, (verdict, _) in said.items() if verdict == "reused")
    original = said[reused][1]
    assert original is not None
    both_p2sgrads = ["warned", "warned"]
    assert sorted(verdict for verdict, _ in said.values()) == ["rejected", "reused", *both_p2sgrads]
    told = outcomes(events)
    assert told[reused] == as_its_twins(told[original])
    assert "rejected before training: ∂L/∂cos_y > 0" in result.out


# What is shown


def test_tables_count_the_rejected_and_the_reused_by_reason(tmp_path: Path) -> None:
    events = run(tmp_path / "a", two_rounds())
    trials = trials_table(events).set_index("number")
    assert trials["state"].tolist() == ["told", "rejected", "told", "told", "told", "told", "told", "rejected", "told"]
    assert "reused: the same gradients, parent, epochs, seed and recipe as trial 0" in str(trials.loc[2, "preflight"])
    assert trials.loc[2, "images"] == 0
    assert trials.loc[[2, 4, 6], "lineage_images"].tolist() == [100, 200, 200]
    totals = search_totals(events).set_index("role").loc["search"]
    assert (totals["told"], totals["failed"], totals["rejected"], totals["images"]) == (7, 0, 2, 500)
    found = failures_table(events).groupby("kind")["count"].sum()
    assert found.to_dict() == {"rejected": 2, "reused": 2, "warned": 1}
    assert leaderboard(events)["entrant"].tolist() == ["winner"]


def test_progress_says_why_a_trial_was_not_trained(tmp_path: Path) -> None:
    events = run(tmp_path / "a", two_rounds())
    console = Console(width=300, record=True, file=io.StringIO())
    progress = Progress(console, epochs=40, metric="TAR")
    for event in events[1:]:
        progress.on_event(event)
    said = console.export_text()
    assert "trial 1: rejected before training: its value is not finite in float32 at cos_y = -1" in said
    assert "trial 3: warning: ∂L/∂cos_j < 0 at cos_y = " in said
    assert ", that of trial 0, 0.0 s; 3 trials done" in said
    console.print(progress._render())  # a terminal would draw it
    assert "9 done, 0 running, 2 rejected, 2 reused, 1 warned" in console.export_text()
