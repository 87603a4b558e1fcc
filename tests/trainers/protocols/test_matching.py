"""The nearest entries against the whole table of cosines, ties and chunks included."""

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainers.protocols.sets import clusters, corners, cosine_table
from trainers.protocols.matching import mates, nearest


@given(st.integers(0, 1000), st.integers(1, 30), st.integers(1, 30), st.sampled_from([2**8, 2**10, 2**20]))
@settings(max_examples=60, deadline=None)
def test_ranks_are_those_of_the_whole_table_whatever_the_memory(
    seed: int, probes: int, entries: int, memory_bytes: int
) -> None:
    both = corners(seed, probes + entries, 6)
    probe, gallery = both.only(np.arange(probes)), both.only(np.arange(probes, probes + entries))
    pairs = mates(probe.columns["labels"], gallery.columns["labels"])
    found = nearest(probe.embeddings_ND, gallery.embeddings_ND, pairs, keep=3, memory_bytes=memory_bytes)
    same = probe.columns["labels"][:, None] == gallery.columns["labels"]
    assert {tuple(pair) for pair in pairs.T} == set(zip(*np.nonzero(same), strict=True))
    table = cosine_table(probe.embeddings_ND, gallery.embeddings_ND)
    for row in range(probes):
        strangers = sorted(table[row][~same[row]], reverse=True) + [-np.inf] * 3
        best = max(table[row][same[row]], default=-np.inf)
        assert found.mate_P[row] == best
        assert found.stranger_PT[row].tolist() == strangers[:3]
        for rank in (1, 2, 3):
            beaten = sum(score >= best for score in table[row][~same[row]])
            assert found.rank_within(rank)[row] == (best > -np.inf and beaten < rank)


def test_embeddings_of_any_length_are_compared_by_direction() -> None:
    images = clusters(0, 50, 10)
    scale = np.random.default_rng(0).uniform(0.1, 9, (50, 1)).astype(np.float32)
    pairs = mates(images.columns["labels"], images.columns["labels"])
    plain = nearest(images.embeddings_ND, images.embeddings_ND, pairs, keep=2)
    scaled = nearest(images.embeddings_ND * scale, images.embeddings_ND, pairs, keep=2)
    assert scaled.stranger_PT == pytest.approx(plain.stranger_PT, abs=1e-6)


@pytest.mark.gpu
def test_a_gpu_finds_the_same() -> None:
    images = clusters(1, 200, 20)
    pairs = mates(images.columns["labels"], images.columns["labels"])
    here, there = (
        nearest(images.embeddings_ND, images.embeddings_ND, pairs, keep=3, memory_bytes=2**14, device=device)
        for device in ("cpu", "cuda")
    )
    assert there.mate_P == pytest.approx(here.mate_P, abs=1e-5)
    assert there.stranger_PT == pytest.approx(here.stranger_PT, abs=1e-5)


def test_what_is_held_at_a_time_stays_within_the_stated_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    held = []
    topk = torch.Tensor.topk

    def watched(self: torch.Tensor, *args: object, **more: object) -> object:
        held.append(self.numel() * self.element_size())
        return topk(self, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.Tensor, "topk", watched)
    x_ND = np.random.default_rng(0).standard_normal((3000, 16)).astype(np.float32)
    tracemalloc.start()
    nearest(x_ND, x_ND, np.empty((2, 0), dtype=np.int64), keep=1, memory_bytes=2**20)
    assert 2**18 < max(held) <= 2**20
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
