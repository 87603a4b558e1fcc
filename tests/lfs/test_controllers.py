"""What every controller must do. A new one is a line in `toy.CONTROLLERS`."""

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from lfs.candidates import Halving
from lfs.controller import Controller
from lfs.trial import Trial
from search_space import LossSchedule
from tests.lfs.toy import CONTROLLERS, HORIZON_EPOCHS, toy_runner
from trainers.outcome import Outcome

Make = Callable[[int], Controller]
every_controller = pytest.mark.parametrize("make", CONTROLLERS.values(), ids=CONTROLLERS)


def drive(
    controller: Controller,
    workers: int,
    order: random.Random,
    reward: Callable[[Trial], Outcome | None] = lambda _: None,
) -> list[Trial]:
    """Run a controller to its end with trials finishing in random order; returns what it asked."""
    checkpoints: dict[int, object] = {}
    asked: list[Trial] = []
    in_flight: list[Trial] = []
    while True:
        for trial in controller.ask(workers - len(in_flight)) if workers > len(in_flight) else []:
            assert trial.number == len(asked)
            assert trial.parent is None or trial.parent in checkpoints
            asked.append(trial)
            in_flight.append(trial)
        if not in_flight:
            return asked
        assert len(in_flight) <= workers
        trial = in_flight.pop(order.randrange(len(in_flight)))
        start = None if trial.parent is None else checkpoints[trial.parent]
        outcome, checkpoint = toy_runner(trial, start)  # type: ignore[arg-type]
        outcome = reward(trial) or outcome
        if outcome.error is None:
            checkpoints[trial.number] = checkpoint
        controller.tell(trial, outcome)
        for number in checkpoints.keys() - controller.live():
            del checkpoints[number]


def failed(_: Trial) -> Outcome:
    return Outcome(reward=None, seconds=0.0, images=0, error="diverged: loss is nan")


@every_controller
@pytest.mark.parametrize("workers", [1, 2, 7])
def test_finishes_whatever_the_number_of_workers(make: Make, workers: int) -> None:
    asked = drive(make(0), workers, random.Random(workers))
    assert len(asked) > 2
    assert max(trial.epochs for trial in asked) == HORIZON_EPOCHS


@every_controller
def test_an_empty_ask_changes_nothing(make: Make) -> None:
    one, other = make(0), make(0)
    first = list(one.ask(100))
    assert list(other.ask(100)) == first
    for _ in range(3):
        assert list(one.ask(100)) == []
    for trial in first:
        for controller in (one, other):
            controller.tell(trial, toy_runner(trial, None)[0])
    assert list(one.ask(100)) == list(other.ask(100))
    assert one.summary() == other.summary()


@every_controller
def test_equal_seeds_and_orders_ask_the_same(make: Make) -> None:
    assert drive(make(3), 3, random.Random(5)) == drive(make(3), 3, random.Random(5))


@pytest.mark.parametrize("make", [CONTROLLERS["reinforce"], CONTROLLERS["random"]], ids=["reinforce", "random"])
def test_the_order_within_a_round_does_not_matter_but_the_seed_does(make: Make) -> None:
    asked = drive(make(3), 4, random.Random(1))
    assert drive(make(3), 4, random.Random(2)) == asked
    assert [trial.schedule for trial in drive(make(4), 4, random.Random(1))] != [trial.schedule for trial in asked]


@pytest.fixture(scope="module")
def asked_elsewhere() -> dict[str, object]:
    """What every controller asks in another process."""
    code = (
        "import random, sys; sys.path.insert(0, sys.argv[1])\n"
        "from pydantic import TypeAdapter\nfrom lfs.trial import Trial\n"
        "from tests.lfs.test_controllers import CONTROLLERS, drive\n"
        "asked = {name: drive(make(3), 3, random.Random(5)) for name, make in CONTROLLERS.items()}\n"
        "print(TypeAdapter(dict[str, list[Trial]]).dump_json(asked).decode())\n"
    )
    folder = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    found: dict[str, object] = json.loads(done.stdout)
    return found


@every_controller
def test_another_process_asks_the_same(
    make: Make, asked_elsewhere: dict[str, object], request: pytest.FixtureRequest
) -> None:
    here = TypeAdapter(list[Trial]).dump_json(drive(make(3), 3, random.Random(5)))
    assert asked_elsewhere[request.node.callspec.id] == json.loads(here)


@every_controller
@pytest.mark.parametrize("worst_number", [0, 3, 5])
def test_survives_a_failed_trial(make: Make, worst_number: int) -> None:
    healthy = drive(make(0), 2, random.Random(0))
    asked = drive(make(0), 2, random.Random(0), lambda trial: failed(trial) if trial.number == worst_number else None)
    if not isinstance(make(0), Halving):  # how many are promoted depends on what is told when
        assert len(asked) == len(healthy)
    assert max(trial.epochs for trial in asked) == HORIZON_EPOCHS
    assert all(trial.parent != worst_number for trial in asked)


@every_controller
def test_ends_when_everything_fails(make: Make) -> None:
    assert len(drive(make(0), 2, random.Random(0), failed)) >= 1


@every_controller
def test_survives_equal_rewards(make: Make) -> None:
    equal = Outcome(reward=0.5, seconds=0.0, images=0)
    asked = drive(make(0), 2, random.Random(0), lambda _: equal)
    assert max(trial.epochs for trial in asked) == HORIZON_EPOCHS


@every_controller
def test_losses_change_only_at_the_epoch_where_a_trial_starts(make: Make) -> None:
    asked = drive(make(0), 2, random.Random(0))
    for trial in asked:
        if trial.parent is None:
            continue
        parent = asked[trial.parent]
        # a warm-up ends in several orders of the data; where the loss never changes, each round does
        assert trial.seed == parent.seed or trial.round == 0 or len(trial.schedule) == 1
        assert [trial.schedule.at(epoch) for epoch in range(parent.epochs)] == [
            parent.schedule.at(epoch) for epoch in range(parent.epochs)
        ]


@every_controller
def test_summary_is_finite_and_constant_is_a_loss(make: Make) -> None:
    controller = make(0)
    drive(controller, 2, random.Random(0))
    assert all(abs(value) < 1e9 for value in controller.summary().values())
    constant = controller.constant()
    assert constant is None or LossSchedule.constant(constant).final == constant
