"""What a search asked for, in every space: values, choices, knots, lineages and formulas."""

from collections.abc import Mapping

import numpy as np
import pytest

from analysis.ledger import Ledger
from analysis.report import report_html
from analysis.sampler_plots import choices_figure, numbers_figure
from analysis.samples import candidate_behind, candidates_of, domain_of, formulas_of, samples_of, space_of
from lfs.journal import Asked
from lfs.trial import Trial
from search_space import LossSchedule, LossSpec, parts
from search_space.domains import Domain
from search_space.spaces import SPACES, CombinedMargin
from search_space.trajectories import Trajectories
from tests.analysis.journals import sampled_journal, search_journal

COUNT = 12


def drawn(kind: str) -> tuple[list[LossSchedule], Ledger]:
    space, rng = SPACES[kind](), np.random.default_rng(0)
    candidates = [LossSchedule.constant(space.sample(rng)) for _ in range(COUNT)]
    return candidates, Ledger.of(sampled_journal(candidates, space=space.model_dump(mode="json")))


@pytest.mark.parametrize("kind", SPACES)
def test_samples_are_the_values_that_decode_to_the_losses(kind: str) -> None:
    candidates, ledger = drawn(kind)
    samples, space = samples_of(ledger), space_of(ledger)
    assert space is not None
    for number, schedule in enumerate(candidates):
        rows = samples[samples["number"] == number].to_dict("records")
        values = {r["parameter"]: r["option"] if isinstance(r["option"], str) else r["value"] for r in rows}
        assert space.decode(values) == schedule.final
    assert sorted(samples["quarter"].unique()) == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", SPACES)
def test_every_space_has_a_figure_of_what_was_sampled(kind: str) -> None:
    candidates, ledger = drawn(kind)
    samples = samples_of(ledger)
    numbers, choices = numbers_figure(samples, space_of(ledger), COUNT - 1), choices_figure(samples, COUNT - 1)
    assert numbers is not None
    assert (choices is not None) == (kind == "unified")
    page = report_html(sampled_journal(candidates, space=ledger.setting("space")), journal_digest="f" * 64)
    assert 'id="sampled-figure"' in page
    assert "no parameters that could be drawn" not in page


def test_a_choice_is_counted_where_it_exists_alone() -> None:
    _, ledger = drawn("unified")
    samples = samples_of(ledger)
    figure = choices_figure(samples, None)
    assert figure is not None
    shares = figure.table.set_index(["choice", "option"])
    sums = shares.groupby(level="choice").sum()
    assert set(np.round(sums.to_numpy().ravel(), 9)) <= {0.0, 1.0}
    with_target = samples[samples["parameter"] == "target"]["number"]
    assert set(samples[samples["parameter"].str.startswith("target.")]["number"]) <= set(with_target)
    assert len(with_target) < COUNT


def test_a_loss_that_moves_shows_where_its_knots_lie() -> None:
    space = CombinedMargin()
    moving = Trajectories(space, knots=3, epochs=6)
    values = {f"{name}@{knot}": 0.1 * (knot + 1) for knot in range(3) for name in space.parameters}
    ledger = Ledger.of(sampled_journal([moving.decode(values)] * 2, space=space.model_dump(mode="json")))
    assert ledger.started is not None
    config: Mapping[str, object] = {**ledger.started.config, "search": {"method": "sampler", "knots": 3}}
    ledger.started = ledger.started.model_copy(update={"config": config})
    samples = samples_of(ledger)
    found = samples[samples["number"] == 0].set_index("parameter")["value"]
    assert (found["m3, epoch 1"], found["m3, epoch 6"]) == pytest.approx((0.1, 0.3))
    assert found["m3, epoch 3"] == pytest.approx(0.1 + 0.2 * 2 / 5)
    assert domain_of(space, "m3, epoch 3") == Domain(low=0.0, high=0.4)


def test_a_trial_that_goes_on_with_its_parents_loss_is_no_new_candidate() -> None:
    candidates, ledger = drawn("combined_margin")
    events = sampled_journal(candidates)
    on = Trial(number=COUNT, schedule=candidates[3], seed=0, epochs=7, parent=3)
    changed = Trial(number=COUNT + 1, schedule=candidates[4], seed=0, epochs=7, parent=3)
    events.insert(-1, Asked(count=2, trials=(on, changed)))
    ledger = Ledger.of(events)
    assert [trial.number for trial in candidates_of(ledger)] == [*range(COUNT), COUNT + 1]
    assert [candidate_behind(ledger, number) for number in (COUNT, COUNT + 1, 5, None)] == [3, COUNT + 1, 5, None]


def test_the_best_formulas_are_listed_once_each_in_readable_form() -> None:
    first, second = (
        LossSchedule.constant(LossSpec(target=parts.SymbolicTarget(f=("-", "c", margin)))) for margin in (0.2, 0.35)
    )
    events = sampled_journal([first, second, first])
    table = formulas_of(Ledger.of(events))
    assert list(table["number"]) == [2, 1]
    assert list(table["formula"]) == ["f = c − 0.2, s=64", "f = c − 0.35, s=64"]
    assert "f = c − 0.35" in report_html(events, journal_digest="f" * 64)


def test_a_search_with_a_mu_shows_it_in_place_of_what_was_sampled() -> None:
    page = report_html(search_journal(), journal_digest="f" * 64)
    assert 'id="controller-figure"' in page
    assert 'id="sampled-figure"' not in page
