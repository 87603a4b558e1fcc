"""Random numbers that are functions of what they are for, so that no generator's state need be kept."""

import numpy as np
import torch

WEIGHTS, BATCHES, MARGINS = 0, 1, 2
"""What a stream of random numbers is for."""


def random_stream(*key: int) -> torch.Generator:
    """Random numbers that depend on every part of `key`; keys that differ by zeros at their end alone are the same."""
    seed = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(seed))
