"""A cluster of nodes in different working directories, of which some are killed."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray.cluster_utils import Cluster

from lfs.checkpoints import CheckpointStore
from lfs.fixed_list import FixedList, NamedSchedule
from lfs.journal import Event, Journal, Retried, Told
from lfs.ray_executor import RayExecutor, Resources, connected
from lfs.search import search
from search_space import LossSchedule, catalog
from tests.lfs import runners
from tests.lfs.command import draw_images
from tests.lfs.runners import CHECKPOINT_BYTES, DOOMED, Onlooker, Player, closing, play, trial, wait_until
from trainers.data import DataConfig, load_task
from trainers.image_copies import CACHE_VARIABLE
from trainers.image_file import MappedImages

pytestmark = pytest.mark.slow

QUICK_TO_NOTICE = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}
"""Ray's own settings take 16 seconds to find that a node is gone."""


class Nodes:
    """The head, on which the driver runs, and nodes beside it; one CPU each."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "head").mkdir()
        with pytest.MonkeyPatch.context() as place:
            place.chdir(root / "head")
            self.cluster = Cluster(
                initialize_head=True, head_node_args={"num_cpus": 1, "_system_config": QUICK_TO_NOTICE}
            )

    def add(self, name: str) -> Any:
        """A node whose working directory is the folder of this name."""
        folder = self.root / name
        folder.mkdir()
        (folder / DOOMED).touch()
        with pytest.MonkeyPatch.context() as place:
            place.chdir(folder)
            return self.cluster.add_node(num_cpus=1)

    def kill(self, node: Any) -> None:
        self.cluster.remove_node(node, allow_graceful=False)

    def folders(self, *names: str) -> set[int]:
        """Their numbers, which is how a `Player` reports them."""
        return {(self.root / name).stat().st_ino for name in names}


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """Joined by way of RAY_ADDRESS, from a folder that is no node's."""
    by_value: Any = ray.cloudpickle
    by_value.register_pickle_by_value(runners)
    nodes = Nodes(tmp_path_factory.mktemp("cluster"))
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_ADDRESS", nodes.cluster.address)
        with connected(None, cpus=7) as resources:
            assert resources == Resources(cpus=1, gpus=0)
            yield nodes
    nodes.cluster.shutdown()  # type: ignore[no-untyped-call]
    by_value.unregister_pickle_by_value(runners)


@pytest.fixture
def player(tmp_path: Path) -> Player:
    return Player(tmp_path, np.zeros(1_000_000, dtype=np.uint8))


def test_a_search_ends_with_all_told_though_a_node_is_killed(nodes: Nodes, player: Player, tmp_path: Path) -> None:
    doomed = [nodes.add("doomed")]
    told: dict[int, Told] = {}
    retried: list[Retried] = []

    def kill_once_a_trial_hangs_there(event: Event) -> None:
        if isinstance(event, Retried):
            retried.append(event)
        if isinstance(event, Told):
            if {0, 1} <= told.keys() and doomed:
                wait_until(lambda: any(tmp_path.glob("* hangs")))
                nodes.kill(doomed.pop())
            told[event.trial] = event

    schedule = LossSchedule.constant(catalog.softmax())
    acts = ["meet"] * 2 + ["hang here if doomed"] * 6
    with (
        closing(RayExecutor(player, workers=2)) as executor,
        Journal(tmp_path) as journal,
    ):
        search(
            FixedList([NamedSchedule(name=act, schedule=schedule, epochs=1) for act in acts], seed=0, role="search"),
            executor,
            journal,
            CheckpointStore(tmp_path / "checkpoints"),
            choose=lambda _, outcomes: min(outcomes),
            on_event=kill_once_a_trial_hangs_there,
        )
    assert not doomed
    assert set(told) == set(range(len(acts)))
    assert all(event.outcome.error is None for event in told.values())
    (lost,) = retried
    assert lost.attempt == 1
    assert re.match(r"worker lost: [Tt]he actor", lost.reason)
    assert {told[number].outcome.metrics["folder"] for number in range(2)} == nodes.folders("head", "doomed")
    assert {told[number].outcome.metrics["folder"] for number in range(2, len(acts))} == nodes.folders("head")


def test_a_checkpoint_goes_down_with_its_node_unless_it_was_fetched(nodes: Nodes, player: Player) -> None:
    leaving = nodes.add("leaving")
    with closing(RayExecutor(player, workers=2)) as executor:
        played = play(executor, [trial("meet", together=0), trial("meet", together=0)])
        (number,) = nodes.folders("leaving")
        there = played.metrics("folder").index(number)
        nodes.kill(leaving)
        assert played.completed[there].checkpoint() is None
        kept = played.completed[1 - there].checkpoint()
    assert kept is not None
    assert kept.shape == (CHECKPOINT_BYTES,)


def test_mapped_images_are_mapped_where_they_lie_and_copied_once_to_other_nodes(
    nodes: Nodes, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path of the cache is a relative one, which leads nowhere on the other node."""
    shapes = draw_images(tmp_path / "shapes")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "copies"))
    other = nodes.add("elsewhere")
    with monkeypatch.context() as place:
        place.chdir(nodes.root / "head")
        part = load_task(DataConfig(path=shapes, memory_share=0), cache_dir=Path("cache")).train
        assert isinstance(part, MappedImages)
        here = Path(part.file.folder / "images.npy").stat().st_ino
    with closing(RayExecutor(Onlooker(tmp_path, part), workers=2)) as executor:
        played = play(executor, [trial("meet", together=0), trial("meet", together=0)])
    nodes.kill(other)
    (copy,) = (tmp_path / "copies").glob("*/images.npy")
    by_folder = dict(zip(played.metrics("folder"), played.metrics("images/file"), strict=True))
    head, elsewhere = (nodes.folders(name).pop() for name in ("head", "elsewhere"))
    assert by_folder == {head: here, elsewhere: copy.stat().st_ino}
    assert set(played.metrics("images/sum")) == {float(part.images.sum())}
    assert set(played.metrics("labels/sum")) == {float(part.labels.sum())}


def test_images_that_are_held_are_shared_through_the_object_store(nodes: Nodes, tmp_path: Path) -> None:
    part = load_task(DataConfig(), cache_dir=tmp_path).train
    with closing(RayExecutor(Onlooker(tmp_path, part), workers=1)) as executor:
        played = play(executor, [trial("report")])
    assert played.metrics("images/file") == [-1]
    assert played.metrics("images/sum") == [float(part.images.sum())]
