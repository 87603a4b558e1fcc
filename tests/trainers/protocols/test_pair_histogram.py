"""All pairs by histogram against exact verification and exact resamples."""

import numpy as np
import pytest

from tests.trainers.protocols.sets import clusters, corners, cosine_table
from trainers.pair_scores import PairScores
from trainers.protocols.embedding_sets import EmbeddingSet
from trainers.protocols.pair_histogram import BINS, BLOCKS, PairHistogram
from trainers.protocols.roc import Roc
from trainers.resampling import resampled
from trainers.verification import metric_name, verification

FARS = (1e-1, 1e-2, 1e-3)
CASES = [clusters(0, 600, 80), clusters(1, 300, 7, 1.5), corners(2, 200, 40), corners(3, 60, 3)]


def of(images: EmbeddingSet, memory_bytes: int = 2**28, seed: int = 0) -> PairHistogram:
    rng = np.random.default_rng(seed)
    return PairHistogram.of(images.embeddings_ND, images.labels(), rng=rng, memory_bytes=memory_bytes)


@pytest.mark.parametrize("images", CASES)
def test_the_error_is_within_what_is_stated(images: EmbeddingSet) -> None:
    exact, histogram = verification(images.embeddings_ND, images.labels(), FARS), of(images)
    roc = histogram.roc()
    for far in FARS:
        value = float(roc.tar_at(far)[0])
        assert value - 1e-9 <= exact[metric_name(far)] <= value + histogram.error_at(far) + 1e-9
    largest = float((histogram.genuine_HK.sum(1) / histogram.genuine_HK.sum()).max())
    assert abs(roc.equal_error_rate()[0] - exact["eer"]) <= largest
    assert abs(roc.area()[0] - exact["auc"]) <= largest
    ones = np.ones((len(histogram.hits_K), 1))
    assert histogram.rank1(ones)[0] == pytest.approx(exact["rank1"], abs=1e-12)


def test_ties_at_half_cosines_lie_in_bins_of_their_own_so_nothing_is_lost() -> None:
    images = CASES[2]
    exact, scores = verification(images.embeddings_ND, images.labels(), FARS), of(images).roc().scores(FARS)
    for name, value in scores.items():
        assert value[0] == pytest.approx(exact[name], abs=1e-12)


def test_every_pair_is_counted_once_whatever_the_tiles() -> None:
    images = CASES[2]  # whose cosines do not depend on the tile
    whole, tiled = of(images), of(images, memory_bytes=24 * 3**2)
    assert (whole.impostor_JH == tiled.impostor_JH).all()
    assert (whole.genuine_HK == tiled.genuine_HK).all()
    assert (whole.hits_K == tiled.hits_K).all()
    assert whole.impostor_pairs + whole.genuine_pairs == 200 * 199 // 2
    assert whole.genuine_HK.shape == (BINS, BLOCKS)
    assert whole.mated_K.sum() == (np.bincount(images.labels())[images.labels()] > 1).sum()


@pytest.mark.parametrize("images", CASES[:2])
def test_resamples_of_blocks_are_those_of_the_exact_bootstrap(images: EmbeddingSet) -> None:
    histogram, label_N = of(images), images.labels()
    labels, blocks = int(label_N.max()) + 1, len(histogram.hits_K)
    block_N = (np.random.default_rng(0).permutation(labels) * blocks // labels)[label_N]
    weight_KB = histogram.draw(20, np.random.default_rng(3))
    found, rank1_B = histogram.resampled(weight_KB).scores(FARS), histogram.rank1(weight_KB)
    first, second = np.triu_indices(len(label_N), 1)
    score_P = cosine_table(images.embeddings_ND, images.embeddings_ND)[first, second].astype(np.float32)
    genuine_P, within_P = label_N[first] == label_N[second], block_N[first] == block_N[second]
    mates_P = 2 / np.maximum(np.bincount(label_N)[label_N[first]] - 1, 1)
    for column, weight_K in enumerate(weight_KB.T):
        one_P, two_P = weight_K[block_N[first]], weight_K[block_N[second]]
        drawn_P = np.where(within_P, one_P, one_P * two_P) * np.where(genuine_P, mates_P, 1.0)
        for name, value in Roc.of(score_P, genuine_P, drawn_P).scores(FARS).items():
            assert found[name][column] == pytest.approx(value[0], abs=4e-3), name  # one pair of two images weighs .003
    exact = resampled(PairScores.of(images.embeddings_ND, label_N, block_N), weight_KB, FARS).scores["rank1"]
    assert rank1_B == pytest.approx(exact + verification(images.embeddings_ND, label_N, FARS)["rank1"])


@pytest.mark.gpu
def test_a_gpu_counts_the_same() -> None:
    images = CASES[2]  # whose cosines are exact on any device
    there = PairHistogram.of(
        images.embeddings_ND, images.labels(), rng=np.random.default_rng(0), memory_bytes=2**14, device="cuda"
    )
    assert (there.impostor_JH == of(images).impostor_JH).all()
    assert (there.genuine_HK == of(images).genuine_HK).all()
    assert (there.hits_K == of(images).hits_K).all()


def test_lack_of_pairs_is_refused() -> None:
    x_ND = np.eye(3, dtype=np.float32)
    for label_N, lacking in (([0, 1, 2], "two images of one identity"), ([0, 0, 0], "images of two identities")):
        with pytest.raises(ValueError, match=f"verification needs {lacking}, but none are among the 3 images"):
            PairHistogram.of(x_ND, np.array(label_N), rng=np.random.default_rng(0))
