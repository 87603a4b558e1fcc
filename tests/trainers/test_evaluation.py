"""Signs of a collapse, and the scores behind them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from trainers.evaluation import Evaluator, as_float, collapse, reward_of
from trainers.task import Task

HEALTHY = {"val/mean_cosine": 0.02, "train/target_cosine": 0.4, "train/separation": 3.0, "val/rank1": 0.8}


def _never() -> float:
    raise AssertionError("the untrained network was asked for")


@pytest.mark.parametrize("change", [{}, {"val/rank1": 0.1}, {"val/mean_cosine": 0.9}])
def test_separated_targets_are_no_collapse_and_cost_no_second_look(change: dict[str, float]) -> None:
    assert collapse(HEALTHY | change, _never) is None


@pytest.mark.parametrize("low", [{"train/target_cosine": 0.01}, {"train/separation": 0.5}])
def test_low_cosines_are_a_collapse_only_when_rank1_is_not_clearly_above_the_untrained_network(
    low: dict[str, float],
) -> None:
    scores = HEALTHY | low
    assert collapse(scores, lambda: 0.3) is None
    symptom = collapse(scores | {"val/rank1": 0.31}, lambda: 0.3)
    assert symptom is not None
    assert symptom.startswith("stalled: the target cosines average 0.")
    assert symptom.endswith("standard deviations above the others, and rank-1 is 0.310 (untrained: 0.300)")


def test_one_point_comes_before_all_else() -> None:
    symptom = collapse(
        {"val/mean_cosine": 0.97, "train/target_cosine": 0.0, "train/separation": 0.0, "val/rank1": 0.0}, _never
    )
    assert symptom == "one point: the mean cosine between validation images is 0.970"


def test_the_reward_is_taken_from_the_reward_half() -> None:
    scores = {"reward/eer": 0.25, "choice/eer": 0.5, "reward/rank1": 0.6, "choice/rank1": 0.7}
    assert reward_of(scores, "one_minus_eer") == 0.75
    assert reward_of(scores, "rank1") == 0.6


@pytest.mark.parametrize("together", [2**22, 50])
def test_separation_is_that_of_all_cosines_however_many_are_looked_at_together(
    toy_task: Task, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainers.evaluation._COSINES", together)
    learner = _Learner(toy_task.train.classes)
    scores = Evaluator(toy_task, torch.device("cpu")).scores(learner)
    cos_NC = learner.cosines(learner.embed(as_float(torch.from_numpy(toy_task.train.images)))).numpy()
    own_NC = toy_task.train.labels[:, None] == np.arange(toy_task.train.classes)
    target, others = cos_NC[own_NC].mean(), cos_NC[~own_NC]
    assert scores["train/target_cosine"] == pytest.approx(target, rel=1e-5)
    assert scores["train/separation"] == pytest.approx((target - others.mean()) / others.std(ddof=1), rel=1e-5)


class _Learner:
    """Random class weights; an image's embedding is a random map of its pixels."""

    def __init__(self, classes: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self._class_weights_CD = torch.randn(classes, 8, generator=generator)
        self._map_PD = torch.randn(256, 8, generator=generator)

    def embed(self, images_NKHW: torch.Tensor) -> torch.Tensor:
        return images_NKHW.flatten(1) @ self._map_PD

    def cosines(self, embeddings_ND: torch.Tensor) -> torch.Tensor:
        return F.normalize(embeddings_ND) @ F.normalize(self._class_weights_CD).T

    def loss_state(self) -> dict[str, float]:
        return {}
