"""`RayExecutor`: trials on long-lived Ray actors, on this machine or a cluster."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import ray
from ray.exceptions import GetTimeoutError, OutOfMemoryError, RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lfs.checkpoints import Checkpoint
from lfs.errors import UserError
from lfs.executor import (
    Attempts,
    Completed,
    Failure,
    Job,
    LockstepQueue,
    Lost,
    Runner,
    describe_exception,
    failure,
    run_jobs,
)
from lfs.sources import source_digest
from lfs.trial import Trial
from trainers.image_copies import copy_of, piece
from trainers.image_file import ImageFile, MappedImages
from trainers.machine import usable_cpus
from trainers.outcome import Outcome

R = TypeVar("R")

START_SECONDS = 180.0
"""How long there may be no worker at all, at the start or after a loss, before the search stops."""

STARTS = 3
"""So many processes in a row may die before a worker is up; then the search goes on without that worker."""

FRESH_SECONDS = 1.0
"""A worker that has idled for longer is asked whether it is still there before it is given a trial."""

JOIN_SECONDS = 60.0
"""How long a cluster may take to let a process in."""

_JOIN = """
import logging, sys, ray
try:
    ray.init(address=sys.argv[1], logging_level=logging.CRITICAL, log_to_driver=False)
except Exception as error:
    sys.exit(' '.join(f'{type(error).__name__}: {error}'.split()))
"""

_log = logging.getLogger(__name__)


class ClusterError(UserError):
    """Ray cannot be started or joined as asked, or no worker is left; the message says why and what would be right."""


class _Worker:
    """What lives in the actor's process."""

    def __init__(self, runner: Runner, driver_digest: str) -> None:
        _refuse_other_sources(driver_digest)
        self._runner = runner

    def ready(self) -> bool:
        return True

    def run(self, trials: Sequence[Trial], *starts: Checkpoint | None) -> tuple[object, ...]:
        """Outcomes, then checkpoints."""
        jobs = [Job(trial, start) for trial, start in zip(trials, starts, strict=True)]
        results = [(each, None) if isinstance(each, Failure) else each for each in run_jobs(self._runner, jobs)]
        return *(outcome for outcome, _ in results), *(checkpoint for _, checkpoint in results)


def _refuse_other_sources(driver_digest: str) -> None:
    here = source_digest()
    if here != driver_digest:
        raise RuntimeError(
            f"the worker on node {ray.get_runtime_context().get_node_id()} runs other sources of lossearch ({here}) "
            f"than the driver ({driver_digest}); install the same version on every node"
        )


@dataclass(slots=True, eq=False)
class _Job:
    trial: Trial
    start: Any
    """An object reference to the checkpoint, or None."""


@dataclass(slots=True)
class _Expected:
    """An actor that was asked whether it is ready."""

    actor: Any
    deaths: int
    """How many died in its place before they were up."""


@dataclass(slots=True)
class _Idle:
    actor: Any
    since: float


@dataclass(slots=True)
class _Running:
    """Jobs in lockstep on one actor."""

    jobs: Sequence[_Job]
    actor: Any
    returned: Sequence[Any]
    """Object references: the outcomes, then the checkpoints."""
    since: float


@dataclass(frozen=True, slots=True)
class Resources:
    """What the cluster has."""

    cpus: float
    gpus: float


@contextlib.contextmanager
def connected(address: str | None, *, cpus: int) -> Iterator[Resources]:
    """Within it: the cluster at `address` (or RAY_ADDRESS), else a Ray started here with at least `cpus` logical CPUs.

    Raises `ClusterError` for a ray:// address or an unreachable one.
    """
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address.startswith("ray://"):
        raise ClusterError(
            f"executor.address '{address}' is a Ray Client address: the driver must run on a node of the cluster, "
            "so that it owns results and checkpoints; start it there with address 'auto' or host:port"
        )
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    local: dict[str, Any] = {}
    if address == "local":
        local = {"num_cpus": max(cpus, usable_cpus()), "include_dashboard": False}
    else:
        _check_that_it_lets_in(address)
    try:
        _init(address, **local)
    except (OSError, RuntimeError, ValueError, RayError) as error:
        tried = "Ray cannot be started here" if local else f"executor.address '{address}' cannot be joined"
        raise ClusterError(f"{tried}: {describe_exception(error)}") from None
    try:
        share_mapped_images()
        yield cluster_resources()
    finally:
        ray.shutdown()


def share_mapped_images() -> None:
    """Let mapped images travel as the name of their file: workers of this node map it too, and those of others a copy
    of theirs. Images that are held travel through the object store, which a node's workers share."""
    home = ray.get_runtime_context().get_node_id()
    ray.util.register_serializer(
        MappedImages, serializer=lambda sent: (sent.file, sent.labels, home), deserializer=_map_again
    )


def _map_again(sent: tuple[ImageFile, npt.NDArray[np.int64], str]) -> MappedImages:
    file, labels_N, home = sent
    if not file.is_here():
        at_home = NodeAffinitySchedulingStrategy(home, soft=False)
        read: Any = ray.remote(num_cpus=0)(piece).options(scheduling_strategy=at_home)
        file = copy_of(file, lambda name, offset: ray.get(read.remote(sent[0].folder, name, offset)))
    return MappedImages(images=file.images(), labels=labels_N, file=file)


def _init(address: str, **local: Any) -> None:
    """`ray.init`, during and after which SIGTERM means what it meant before: Ray puts its own handler in place."""
    on_sigterm, terminated = signal.getsignal(signal.SIGTERM), False
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, **local)
    except SystemExit:
        terminated = True
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)
    if terminated:
        signal.raise_signal(signal.SIGTERM)


def _check_that_it_lets_in(address: str) -> None:
    """Join the cluster in a process that can be killed: where no cluster is, Ray itself tries for minutes."""
    try:
        joined = subprocess.run(
            [sys.executable, "-P", "-c", _JOIN, address],
            capture_output=True,
            check=False,
            text=True,
            timeout=JOIN_SECONDS,
        )
    except subprocess.TimeoutExpired:
        reason = f"no Ray cluster answers there within {JOIN_SECONDS:g} s"
    else:
        if not joined.returncode:
            return
        reason = _last_line(joined.stderr)
    raise ClusterError(f"executor.address '{address}' cannot be joined: {reason}")


def cluster_resources() -> Resources:
    """What the cluster has now."""
    have = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return Resources(cpus=have.get("CPU", 0.0), gpus=have.get("GPU", 0.0))


def room(*, cpus: int, gpus: float) -> int:
    """How many workers with so many CPUs and so much of a GPU the nodes hold. A share of a GPU lies on one GPU."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return sum(_room_on(node["Resources"], cpus, gpus) for node in nodes if node["Alive"])


def _room_on(resources: Mapping[str, float], cpus: int, gpus: float) -> int:
    by_cpus = int(resources.get("CPU", 0.0) // cpus)
    if not gpus:
        return by_cpus
    whole = int(resources.get("GPU", 0.0))
    return min(by_cpus, whole * int(1 / gpus + 1e-9) if gpus < 1 else int(whole // gpus))


def _refuse_beyond_room(workers: int, *, cpus: int, gpus: float) -> None:
    if workers > (fit := room(cpus=cpus, gpus=gpus)):
        have = cluster_resources()
        raise ClusterError(
            f"executor.workers = {workers} of {cpus} CPUs and {gpus:g} GPUs each do not fit: the cluster has "
            f"{have.cpus:g} CPUs and {have.gpus:g} GPUs, room for {fit} of them; "
            "lower executor.workers, executor.threads or executor.gpus_per_worker"
        )


def call_on_worker(function: Callable[..., R], *args: object, cpus: int, gpus: float) -> R:
    """Run a function where trials would run. Raises `ClusterError` where there is no room or it cannot be run."""
    _refuse_beyond_room(1, cpus=cpus, gpus=gpus)
    remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(_call)
    try:
        result: R = ray.get(remote.remote(source_digest(), function, *args), timeout=START_SECONDS)
    except GetTimeoutError:
        raise ClusterError(
            f"no worker has measured the arithmetic within {START_SECONDS:g} s: the cluster is busy, or the network is "
            "large; numerics.dtype, channels_last, lockstep and execution, all set, leave the measurement out"
        ) from None
    except RayError as error:
        raise ClusterError(f"no worker could be started: {_last_line(str(error))}") from None
    return result


def _call(driver_digest: str, function: Callable[..., R], *args: object) -> R:
    _refuse_other_sources(driver_digest)
    return function(*args)


class RayExecutor:
    """`workers` actors, each with `cpus_per_worker` CPUs and a share of a GPU; the data is put once.

    Up to `lockstep` trials run side by side on an actor, if the runner is a `LockstepRunner`.

    Outcome and checkpoint of a trial are two objects, so that only the checkpoints that are kept travel. A worker that
    is lost, or in which a trial raised or took longer than `trial_timeout_seconds`, is replaced, and the trial made
    again as `Attempts` allows; Ray's own retries are off. Only workers that are up are given trials: where the cluster
    no longer has room for a replacement, the others go on, and it joins them when there is room again. Use it within
    `connected`. Raises `ClusterError` when the workers do not fit, and whenever there is none for `START_SECONDS`.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        workers: int,
        lockstep: int = 1,
        cpus_per_worker: int = 1,
        gpus_per_worker: float = 0.0,
        trial_timeout_seconds: float | None = None,
    ) -> None:
        _refuse_beyond_room(workers, cpus=cpus_per_worker, gpus=gpus_per_worker)
        self._slots, self._lockstep = workers * lockstep, lockstep
        self._timeout_seconds = trial_timeout_seconds
        self._attempts = Attempts()
        self._waiting: LockstepQueue[_Job] = LockstepQueue(lockstep)
        self._expected: dict[Any, _Expected] = {}
        self._idle: list[_Idle] = []
        self._running: dict[Any, _Running] = {}
        self._last_start: tuple[Checkpoint, Any] | None = None
        self._runner = ray.put(runner)
        self._actor_class: Any = ray.remote(
            num_cpus=cpus_per_worker, num_gpus=gpus_per_worker, max_restarts=0, max_task_retries=0
        )(_Worker)
        for _ in range(workers):
            self._start_worker(deaths=0)
        self._worker_seen = time.monotonic()
        while not self._idle:
            self._look()

    @property
    def slots(self) -> int:
        """The number of workers, times the trials that each runs in lockstep."""
        return self._slots

    def submit(self, trial: Trial, start: Checkpoint | None) -> None:
        """Start the trial on an idle worker, or queue it; one that may find company waits for it until `wait`."""
        self._waiting.put(_Job(trial, None if start is None else self._sent(start)), trial, start)
        if self._lockstep == 1:
            self._dispatch()

    def _sent(self, start: Checkpoint) -> Any:
        """The reference to a checkpoint; a round sends one many times."""
        if self._last_start is None or self._last_start[0] is not start:
            self._last_start = start, ray.put(start)
        return self._last_start[1]

    def wait(self) -> Sequence[Completed | Lost]:
        """Block until a trial is over or an attempt is lost."""
        while True:
            self._dispatch()
            happened = self._look()
            self._dispatch()
            if happened:
                return happened

    def close(self) -> None:
        """Kill the workers."""
        workers: list[_Running | _Idle | _Expected] = [*self._running.values(), *self._idle, *self._expected.values()]
        for worker in workers:
            _kill(worker.actor)

    def _start_worker(self, *, deaths: int) -> None:
        self._expect(self._actor_class.remote(self._runner, source_digest()), deaths=deaths)

    def _expect(self, actor: Any, *, deaths: int) -> None:
        self._expected[actor.ready.remote()] = _Expected(actor, deaths)

    def _dispatch(self) -> None:
        """Hand waiting jobs to idle workers. A node that goes down takes its idle workers with it, which must not cost
        a trial an attempt for each."""
        while self._waiting and self._idle:
            idle = self._idle.pop()
            if time.monotonic() - idle.since > FRESH_SECONDS:
                self._expect(idle.actor, deaths=0)
                continue
            jobs = self._waiting.take(workers=1 + len(self._idle) + len(self._expected))
            starts = [job.start for job in jobs]
            returned = idle.actor.run.options(num_returns=2 * len(jobs)).remote([job.trial for job in jobs], *starts)
            self._running[returned[0]] = _Running(jobs, idle.actor, returned, time.monotonic())

    def _look(self) -> list[Completed | Lost]:
        """Take in what has happened, waiting a second for it at most."""
        done, _ = ray.wait([*self._expected, *self._running], num_returns=1, timeout=1.0)
        happened = []
        for reference in done:
            if reference in self._expected:
                self._welcome(self._expected.pop(reference), reference)
            else:
                happened += self._collect(self._running.pop(reference))
        happened += self._overdue()
        self._stop_without_workers()
        return happened

    def _welcome(self, expected: _Expected, ready: Any) -> None:
        """Have a worker that is up take part. Where one died another may come up; one that raised would raise again."""
        try:
            ray.get(ready)
        except RayError as error:
            _kill(expected.actor)
            raised = isinstance(error, RayActorError) and error.actor_init_failed
            if not raised and expected.deaths + 1 < STARTS:
                self._start_worker(deaths=expected.deaths + 1)
            else:
                self._go_on_without(_last_line(str(error)))
        else:
            self._idle.append(_Idle(expected.actor, time.monotonic()))

    def _go_on_without(self, reason: str) -> None:
        left = len(self._idle) + len(self._running) + len(self._expected)
        if not left:
            raise ClusterError(f"no worker could be started: {reason}")
        _log.warning("a worker could not be started, the search goes on with %d: %s", left, reason)

    def _stop_without_workers(self) -> None:
        now = time.monotonic()
        if self._idle or self._running:
            self._worker_seen = now
        elif now - self._worker_seen > START_SECONDS:
            self.close()
            have = cluster_resources()
            raise ClusterError(
                f"no worker has come up for {START_SECONDS:g} s: the cluster has {have.cpus:g} CPUs and "
                f"{have.gpus:g} GPUs; see what else uses it or which nodes are gone, then go on with 'lossearch resume'"
            )

    def _collect(self, running: _Running) -> list[Completed | Lost]:
        outcomes, checkpoints = running.returned[: len(running.jobs)], running.returned[len(running.jobs) :]
        try:
            values: list[Outcome | Failure] = ray.get(outcomes)
        except OutOfMemoryError as error:
            return self._failed(running, Failure("memory", f"out of memory: {_first_line(error)}"))
        except RayTaskError as error:
            return self._failed(running, Failure("exception", _last_line(str(error))))
        except RayError as error:
            cause, *_ = _last_line(str(error)).split(". ")  # what follows are numbers and advice
            return self._failed(running, Failure("lost", f"worker lost: {cause}"))
        if any(isinstance(value, Failure) for value in values):
            self._replace(running)
        else:
            self._idle.append(_Idle(running.actor, time.monotonic()))
        return [
            self._again(job, value)
            if isinstance(value, Failure)
            else Completed(job.trial, value, partial(_fetch, checkpoint))
            for job, value, checkpoint in zip(running.jobs, values, checkpoints, strict=True)
        ]

    def _overdue(self) -> list[Completed | Lost]:
        if self._timeout_seconds is None:
            return []
        now = time.monotonic()
        late = [
            ref
            for ref, running in self._running.items()
            if now - running.since > self._timeout_seconds * len(running.jobs)
        ]
        reason = Failure("lost", f"took longer than trial_timeout_seconds = {self._timeout_seconds:g}")
        return [lost for ref in late for lost in self._failed(self._running.pop(ref), reason)]

    def _failed(self, running: _Running, reason: Failure) -> list[Completed | Lost]:
        self._replace(running)
        return [self._again(job, reason, alone=len(running.jobs) == 1) for job in running.jobs]

    def _replace(self, running: _Running) -> None:
        """Start another worker in place of this one, whose state nobody knows."""
        _kill(running.actor)
        self._start_worker(deaths=0)

    def _again(self, job: _Job, failed: Failure, *, alone: bool = True) -> Completed | Lost:
        """Make the trial again if that is due."""
        attempt = self._attempts.again(job.trial, failed.cause, alone=alone)
        if attempt is None:
            return Completed(job.trial, failure(failed.reason), lambda: None)
        self._waiting.put_back(job)
        return Lost(job.trial, attempt, failed.reason)


def _kill(actor: Any) -> None:
    """Also one that is dead already, or away: it must not go on with what another was given."""
    with contextlib.suppress(RayError, ValueError):
        ray.kill(actor)


def _fetch(reference: Any) -> Checkpoint | None:
    try:
        value: Checkpoint | None = ray.get(reference)
    except RayError:
        return None  # its node died after the outcome arrived: the checkpoint can be rebuilt
    return value


def _last_line(text: str) -> str:
    """Where Ray's text of a failed actor ends with the exception that the actor raised."""
    return (text.strip().splitlines() or ["no reason was given"])[-1].strip()[:500]


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
