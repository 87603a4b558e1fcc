"""What the rows of learning rates are made to say, on rows whose truth is known."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from tests.bench import rates
from tests.bench.rates import LONGER, LOSSES, RATES, SEEDS, agreements, by_length, means, spans
from tests.bench.study import METRICS

Score = Callable[[int, float, int], float]
"""Of a loss's number, a rate and a seed."""


def rows(data: str, tar: Score, blend: Score, times: int = 1) -> Iterator[dict[str, object]]:
    rng = np.random.default_rng(0)
    for number, name in enumerate(LOSSES):
        for rate in RATES[:2]:
            for seed in SEEDS:
                score = {metric: float(rng.random()) for metric in METRICS}
                score |= {"tar_at_far_1e-3": tar(number, rate, seed), "blend": blend(number, rate, seed)}
                row = {"data": data, "name": name, "rate": rate, "seed": seed, "choice": score, "reward": score}
                yield row | ({"times": times} if times > 1 else {})


@pytest.fixture
def write(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def as_file(*parts: Iterator[dict[str, object]]) -> None:
        kept = [row for part in parts for row in part]
        monkeypatch.setattr(rates, "read_rows", lambda _: kept)

    return as_file


def quality(number: int, rate: float, seed: int) -> float:
    return 0.5 + 0.01 * number + 0.1 * rate


def luck(number: int, rate: float, seed: int) -> float:
    return quality(number, rate, seed) + 0.2 * (hash((number, rate, seed)) % 100) / 100


def test_a_reward_that_orders_losses_agrees_and_one_that_does_not_does_not(write: Callable[..., None]) -> None:
    write(rows("omniglot", tar=luck, blend=quality))
    told = agreements().set_index("")["omniglot"].astype(float)
    assert told["blend"] > told["tar_at_far_1e-3"]
    assert abs(told["auc"]) < 0.5
    write(rows("omniglot", tar=quality, blend=lambda *of: -quality(*of)))
    told = agreements().set_index("")["omniglot"].astype(float)
    assert (told["tar_at_far_1e-3"], told["blend"]) == (1.0, -1.0)


def test_a_data_set_that_lacks_a_training_is_left_out(write: Callable[..., None]) -> None:
    write(rows("omniglot", quality, quality), (row for row in rows("lfw112", quality, quality) if row["seed"] != 903))
    assert list(agreements().columns) == ["", "omniglot"]


def test_longer_trainings_are_held_against_the_same_seeds(write: Callable[..., None]) -> None:
    def closer(number: int, rate: float, seed: int) -> float:
        return 0.9 + 0.001 * number

    four_times = [row for row in rows("omniglot", closer, closer, LONGER) if row["seed"] != 903 and row["rate"] == 0.2]
    write(rows("omniglot", quality, quality), iter(four_times))
    once, longer = by_length("omniglot")["AdaCos"]
    assert once == pytest.approx([0.53] * 2)
    assert longer == pytest.approx([0.901] * 2)
    assert np.ravel(spans("omniglot")) == pytest.approx([0.06, 0.0, 0.006, 0.0])
    assert means("omniglot")["AdaCos", 0.2] == pytest.approx(0.53)  # the longer ones do not count
    assert spans("lfw112") == []


def test_equal_losses_span_what_luck_makes_of_their_seeds(write: Callable[..., None]) -> None:
    """The mean range of seven normal draws is 2.704 standard deviations (Tippett 1925), here of a mean over two."""

    def lucky(number: int, rate: float, seed: int) -> float:
        return 0.5 + 0.01 * (seed == 901)

    four_times = [row for row in rows("omniglot", lucky, lucky, LONGER) if row["seed"] != 903 and row["rate"] == 0.2]
    write(rows("omniglot", lucky, lucky), iter(four_times))
    error = np.std([0.51, 0.5], ddof=1) / 2**0.5
    assert np.ravel(spans("omniglot")) == pytest.approx([0.0, 2.704 * error] * 2, rel=0.03, abs=1e-9)
