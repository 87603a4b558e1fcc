"""Trials on the workers of one Ray with four logical CPUs and one logical GPU."""

import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray

from lfs import ray_executor
from lfs.checkpoints import Checkpoint
from lfs.executor import Executor
from lfs.ray_executor import ClusterError, RayExecutor, call_on_worker, connected, room
from lfs.runner import TrainingRunner
from lfs.trial import Trial
from search_space import LossSchedule, catalog
from tests.lfs import runners
from tests.lfs.runners import CHECKPOINT_BYTES, Player, closing, follow, play, trial, wait_until
from trainers.data import DataConfig, load_task
from trainers.outcome import Outcome
from trainers.recipe import Numerics, Recipe

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    """Workers are given this module's helpers by value: they do not import the tests."""
    by_value: Any = ray.cloudpickle
    by_value.register_pickle_by_value(runners)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
        environment.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        ray.init(
            address="local",
            num_cpus=4,
            num_gpus=1,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        yield
        ray.shutdown()
    by_value.unregister_pickle_by_value(runners)


@pytest.fixture(scope="module")
def player(tmp_path_factory: pytest.TempPathFactory) -> Player:
    return Player(tmp_path_factory.mktemp("play"), np.arange(8_000_000, dtype=np.uint8))


@pytest.fixture(scope="module")
def pair(local_ray: None, player: Player) -> Iterator[Executor]:
    """Two workers, on one GPU."""
    with closing(RayExecutor(player, workers=2, gpus_per_worker=0.5)) as executor:
        yield executor


class Neighbour:
    """Something else on the cluster: it takes its CPUs as soon as they are free."""

    def __init__(self, cpus: int) -> None:
        class Tenant:
            def is_in(self) -> bool:
                return True

        tenant: Any = ray.remote(num_cpus=cpus)(Tenant)
        self._actor = tenant.remote()

    def move_in(self) -> None:
        """Wait until it has its CPUs."""
        assert ray.get(self._actor.is_in.remote())

    def move_out(self) -> None:
        ray.kill(self._actor)


def kill(pid: int) -> None:
    """End a process as the system does when it needs the memory."""
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not psutil.pid_exists(pid))


def test_workers_live_long_and_share_one_copy_of_the_data(pair: Executor) -> None:
    pickled = Player.pickled
    first, second = (play(pair, [trial("meet", together=meeting) for _ in range(2)]) for meeting in range(2))
    place_by_pid, later = (
        dict(zip(each.metrics("pid"), each.metrics("data/address"), strict=True)) for each in (first, second)
    )
    assert len(place_by_pid) == 2
    assert later == place_by_pid
    assert first.metrics("data/owned") == first.metrics("data/writeable") == [0, 0]
    assert Player.pickled == pickled


@pytest.fixture
def lockstep_pair(local_ray: None, player: Player) -> Iterator[Executor]:
    """Two workers that train up to four trials in lockstep."""
    with closing(RayExecutor(player, workers=2, lockstep=4)) as executor:
        yield executor


def test_trials_train_in_lockstep_on_one_worker(lockstep_pair: Executor) -> None:
    assert lockstep_pair.slots == 8
    played = play(lockstep_pair, [trial("report") for _ in range(8)])
    assert 1 < max(played.metrics("company")) <= 4
    for completed in played.completed:
        checkpoint = completed.checkpoint()
        assert checkpoint is not None
        assert set(checkpoint) == {completed.trial.number % 256}


def test_a_worker_lost_in_lockstep_costs_each_trial_that_attempt_alone(lockstep_pair: Executor) -> None:
    """The one whose fault it was fails by itself, after as many attempts as any; the others lose one."""
    bad, *good = trials = [trial("die"), *(trial("report") for _ in range(3))]
    played = play(lockstep_pair, trials)
    assert str(played.completed[0].outcome.error).startswith("worker lost:")
    assert all(completed.outcome.error is None for completed in played.completed[1:])
    attempts = [lost.attempt for lost in played.lost if lost.trial == bad]
    assert attempts == [1, 2, 3]
    assert len([lost for lost in played.lost if lost.trial in good]) <= len(good)


def test_an_exception_in_lockstep_is_that_of_its_own_trial(lockstep_pair: Executor) -> None:
    trials = [trial("report"), trial("run out of memory"), trial("report"), trial("report")]
    played = play(lockstep_pair, trials)
    errors = [completed.outcome.error for completed in played.completed]
    assert errors == [None, "MemoryError: no room for 1 TiB", None, None]
    assert not played.lost


def test_two_workers_share_a_gpu(pair: Executor) -> None:
    both = play(pair, [trial("meet", together=2) for _ in range(2)])
    assert len(set(both.metrics("pid"))) == 2
    assert both.metrics("gpu") == [0, 0]


def test_a_checkpoint_outlives_its_worker_and_starts_another_trial_read_only(pair: Executor) -> None:
    played = play(pair, [trial("report")])
    kill(int(played.metrics("pid")[0]))
    checkpoint = played.completed[0].checkpoint()
    expected = np.full(CHECKPOINT_BYTES, played.completed[0].trial.number % 256, dtype=np.uint8)
    np.testing.assert_array_equal(checkpoint, expected, strict=True)
    continued = play(pair, [trial("report")], start=checkpoint)
    assert continued.metrics("start/sum") == [expected.sum()]
    assert continued.metrics("start/writeable") == [0]


def test_a_worker_that_died_while_idle_costs_no_attempt(pair: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_executor, "FRESH_SECONDS", 0.1)
    for pid in play(pair, [trial("meet", together=3) for _ in range(2)]).metrics("pid"):
        kill(int(pid))
    time.sleep(0.1)
    assert not play(pair, [trial("report")]).lost


def test_a_trial_whose_worker_is_killed_is_made_again_on_another(pair: Executor, player: Player) -> None:
    hangs = trial("hang once")
    pair.submit(hangs, None)
    pid = player.pid_of_hanging(hangs)
    kill(pid)
    played = follow(pair, [hangs])
    assert [lost.attempt for lost in played.lost] == [1]
    assert played.lost[0].reason == "worker lost: The actor is dead because its worker process has died"
    assert played.metrics("pid") != [pid]


FAILURES = {
    "die": (2, "worker lost: The actor is dead because its worker process has died"),
    "die once": (1, None),
    "refuse": (1, "RefusedError: a loss was refused: it is none"),
    "run out of memory": (0, "MemoryError: no room for 1 TiB"),
    "run out of GPU memory": (0, "OutOfMemoryError: CUDA out of memory"),
}


def test_each_kind_of_failure_is_tried_again_as_often_as_it_may_help(pair: Executor) -> None:
    """A lost worker twice, an exception once, memory never; then the failure is the outcome."""
    trials = {does: trial(does) for does in FAILURES}
    played = play(pair, list(trials.values()))
    attempts = {does: [lost.attempt for lost in played.lost if lost.trial == trials[does]] for does in FAILURES}
    assert attempts == {does: list(range(1, retries + 1)) for does, (retries, _) in FAILURES.items()}
    errors = dict(zip(FAILURES, (completed.outcome.error for completed in played.completed), strict=True))
    assert errors == {does: error for does, (_, error) in FAILURES.items()}
    assert [completed.checkpoint() is None for completed in played.completed] == [
        error is not None for error in errors.values()
    ]


def test_a_trial_that_takes_too_long_is_killed_and_made_again_twice(player: Player) -> None:
    pickled = Player.pickled
    with closing(RayExecutor(player, workers=2, trial_timeout_seconds=2.0)) as executor:
        once, always = trial("hang once"), trial("hang")
        played = play(executor, [once, always])
    reason = "took longer than trial_timeout_seconds = 2"
    assert sorted((lost.trial.number, lost.attempt, lost.reason) for lost in played.lost) == [
        (once.number, 1, reason),
        (always.number, 1, reason),
        (always.number, 2, reason),
    ]
    assert [completed.outcome.error for completed in played.completed] == [None, reason]
    wait_until(lambda: not psutil.pid_exists(player.pid_of_hanging(always)))
    assert Player.pickled == pickled + 1


def test_without_room_for_a_replacement_the_others_go_on_until_there_is(player: Player) -> None:
    with closing(RayExecutor(player, workers=2)) as executor:
        neighbour, hangs = Neighbour(cpus=1), trial("hang once")
        executor.submit(hangs, None)
        kill(player.pid_of_hanging(hangs))
        neighbour.move_in()
        alone = follow(executor, [hangs])
        assert len(alone.lost) == 1
        shrunk = play(executor, [trial("report") for _ in range(4)])
        assert set(shrunk.metrics("pid")) == set(alone.metrics("pid"))
        neighbour.move_out()
        assert len(set(play(executor, [trial("meet", together=4) for _ in range(2)]).metrics("pid"))) == 2


def test_a_cluster_that_stays_full_is_named(player: Player, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_executor, "START_SECONDS", 1.0)
    neighbour = Neighbour(cpus=2)
    neighbour.move_in()
    with pytest.raises(ClusterError, match=r"no worker has come up for 1 s: the cluster has 4 CPUs and 1 GPUs"):
        RayExecutor(player, workers=1)
    with pytest.raises(ClusterError, match=r"no worker has measured the arithmetic within 1 s: the cluster is busy"):
        call_on_worker(os.getpid, cpus=1, gpus=0)
    neighbour.move_out()


def test_a_worker_that_refuses_is_done_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class WantedOnce(Player):
        def __setstate__(self, state: dict[str, Any]) -> None:
            (tmp_path / "the only one").mkdir()
            self.__dict__.update(state)

    with closing(RayExecutor(WantedOnce(tmp_path, np.zeros(8, np.uint8)), workers=2)) as executor:
        played = play(executor, [trial("report") for _ in range(4)])
        wait_until(lambda: caplog.messages != [] or play(executor, [trial("report")]).lost != [])
    assert len(set(played.metrics("pid"))) == 1
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("a worker could not be started, the search goes on with 1: FileExistsError:")


def test_a_worker_with_other_sources_is_refused(player: Player, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_executor, "source_digest", lambda: "0123456789ab")
    sentence = (
        r"^no worker could be started: RuntimeError: the worker on node \w+ runs other sources of lossearch "
        r"\([0-9a-f]{12}\) than the driver \(0123456789ab\); install the same version on every node$"
    )
    with pytest.raises(ClusterError, match=sentence):
        call_on_worker(os.getpid, cpus=1, gpus=0)
    with pytest.raises(ClusterError, match=sentence):
        RayExecutor(player, workers=1)


@pytest.mark.parametrize(
    ("cpus", "gpus", "workers"),
    [(1, 0.0, 4), (3, 0.0, 1), (1, 0.5, 2), (1, 0.3, 3), (1, 0.6, 1), (2, 0.25, 2), (1, 1.0, 1), (1, 2.0, 0)],
)
def test_room_is_counted_in_whole_workers(cpus: int, gpus: float, workers: int) -> None:
    assert room(cpus=cpus, gpus=gpus) == workers


def test_workers_beyond_the_room_are_refused(player: Player) -> None:
    with pytest.raises(ClusterError) as refusal:
        RayExecutor(player, workers=3, gpus_per_worker=0.5)
    assert str(refusal.value) == (
        "executor.workers = 3 of 1 CPUs and 0.5 GPUs each do not fit: the cluster has 4 CPUs and 1 GPUs, "
        "room for 2 of them; lower executor.workers, executor.threads or executor.gpus_per_worker"
    )
    with pytest.raises(ClusterError, match=r"executor.workers = 1 of 5 CPUs and 0 GPUs each do not fit"):
        call_on_worker(os.getpid, cpus=5, gpus=0)


def test_a_function_runs_where_trials_run() -> None:
    assert call_on_worker(os.getppid, cpus=1, gpus=0) != os.getppid()


def test_a_checkpoint_that_many_trials_start_from_is_put_once(pair: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
    put: list[object] = []
    really_put: Any = ray.put

    def recorded(value: object) -> object:
        put.append(value)
        return really_put(value)

    monkeypatch.setattr(ray, "put", recorded)
    first, second = (np.full(1000, value, dtype=np.uint8) for value in (1, 2))
    trials = [trial("report") for _ in range(3)]
    assert play(pair, trials, start=first).metrics("start/sum") == [1000.0] * 3
    assert play(pair, [trial("report")], start=second).metrics("start/sum") == [2000.0]
    assert [id(value) for value in put] == [id(first), id(second)]


def test_training_on_a_worker_is_training_here(shapes: Path, tmp_path: Path) -> None:
    """The data there is read-only: whatever wrote to it, or made a tensor of it in the plain way, would fail."""
    task = load_task(DataConfig(path=shapes, image_size=16), cache_dir=tmp_path)
    recipe = Recipe(width=4, embedding_dim=8, horizon_epochs=2, reward="rank1")
    train = TrainingRunner(task, recipe, Numerics())

    def strictly(trial: Trial, start: Checkpoint | None) -> tuple[Outcome, Checkpoint | None]:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert not train.task.train.images.flags.writeable
            assert start is None or not start.flags.writeable
            return train(trial, start)

    first, second = (
        Trial(number=epoch, schedule=LossSchedule.constant(catalog.arcface()), seed=0, epochs=epoch + 1)
        for epoch in range(2)
    )
    with closing(RayExecutor(strictly, workers=1)) as executor:
        there = play(executor, [first]).completed[0]
        continued = play(executor, [second], start=there.checkpoint()).completed[0]
    here, checkpoint = train(first, None)
    assert replace(there.outcome, seconds=0.0) == replace(here, seconds=0.0)
    here, checkpoint = train(second, checkpoint)
    assert replace(continued.outcome, seconds=0.0) == replace(here, seconds=0.0)
    np.testing.assert_array_equal(continued.checkpoint(), checkpoint, strict=True)


def test_a_ray_client_address_is_refused_wherever_it_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray://environment:10001")
    reason = "is a Ray Client address: the driver must run on a node of the cluster"
    with (
        pytest.raises(ClusterError, match=rf"^executor.address 'ray://environment:10001' {reason}"),
        connected(None, cpus=1),
    ):
        pass
    with (
        pytest.raises(ClusterError, match=rf"^executor.address 'ray://given:10001' {reason}"),
        connected("ray://given:10001", cpus=1),
    ):
        pass


def test_an_address_where_no_cluster_is_costs_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        pytest.raises(
            ClusterError, match=r"^executor.address 'nonsense' cannot be joined: ValueError: Invalid address"
        ),
        connected("nonsense", cpus=1),
    ):
        pass
    monkeypatch.setattr(ray_executor, "JOIN_SECONDS", 2.0)
    with (
        pytest.raises(ClusterError, match=r"'127.0.0.1:1' cannot be joined: no Ray cluster answers there within 2 s$"),
        connected("127.0.0.1:1", cpus=1),
    ):
        pass


def test_sigterm_while_ray_starts_means_what_it_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**settings: object) -> None:
        signal.signal(signal.SIGTERM, lambda signum, _: sys.exit(signum))  # as Ray does
        signal.raise_signal(signal.SIGTERM)

    def stop(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ray, "init", init)
    before = signal.signal(signal.SIGTERM, stop)
    try:
        with pytest.raises(KeyboardInterrupt), connected(None, cpus=1):
            pass
        assert signal.getsignal(signal.SIGTERM) is stop
    finally:
        signal.signal(signal.SIGTERM, before)
