import pytest
import torch

from search_space import LossSchedule, catalog
from trainers import Numerics, Recipe, Task, numerics, train
from trainers.numerics import applied, choose, probe


def test_applied_sets_the_threads_and_puts_them_back_even_after_an_error() -> None:
    before = torch.get_num_threads()
    with applied(Numerics(threads=before + 1)):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with pytest.raises(KeyError), applied(Numerics(threads=before + 1)):
        raise KeyError
    assert torch.get_num_threads() == before


def test_the_fastest_is_chosen_but_bfloat16_only_when_it_is_clearly_faster() -> None:
    plain, last = Numerics(), Numerics(channels_last=True)
    half = Numerics(dtype="bfloat16")
    assert choose({plain: 1.0, last: 0.9, half: 0.85}) == last
    assert choose({plain: 1.0, last: 0.9, half: 0.8}) == half
    assert choose({plain: 1.0, last: 1.1, half: 0.95}) == plain


def test_probe_measures_with_the_given_threads_and_restores_them(toy_task: Task) -> None:
    before = torch.get_num_threads()
    rng = torch.get_rng_state()
    found = probe(toy_task, Recipe(width=4, batch_size=4), threads=1)
    assert found.threads == 1
    assert torch.get_num_threads() == before
    assert torch.equal(torch.get_rng_state(), rng)


@pytest.mark.parametrize(("bfloat16_seconds", "steps"), [(2.9, 4), (3.1, 2)])
def test_emulated_bfloat16_is_not_probed_with_whole_batches(
    bfloat16_seconds: float, steps: int, toy_task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []

    def timed(step: numerics._Step) -> float:
        batches.append(len(step._images))
        return bfloat16_seconds if step._numerics.dtype == "bfloat16" else 1.0

    monkeypatch.setattr(numerics._Step, "seconds", timed)
    assert probe(toy_task, Recipe(width=4, batch_size=16)).dtype == "float32"
    assert [size for size in batches if size == 16] == [16] * steps  # longer than two seconds together: once each
    assert [size for size in batches if size != 16] == [2] * 4


def test_cuda_graphs_without_a_gpu_are_refused_with_the_reason(toy_task: Task) -> None:
    with pytest.raises(ValueError, match="'cuda_graph' needs a CUDA device, but this worker trains on 'cpu'"):
        train(
            LossSchedule.constant(catalog.get("softmax")),
            toy_task,
            recipe=Recipe(width=4, embedding_dim=8, horizon_epochs=1),
            numerics=Numerics(execution="cuda_graph"),
            seed=0,
            epochs=1,
        )
