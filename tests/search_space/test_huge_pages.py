import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from search_space import huge_pages


def asks_for_huge_pages(tensor: Tensor) -> bool:
    """Whether the kernel holds the advice for the mapping in which the tensor's middle lies."""
    middle = tensor.data_ptr() + tensor.numel() * tensor.element_size() // 2
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            start, stop = (int(edge, 16) for edge in first.split("-"))
            inside = start <= middle < stop
        elif inside and first == "VmFlags:":
            return "hg" in line.split()
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="huge pages are asked for on Linux only")
def test_large_fresh_memory_is_on_huge_pages_and_small_is_not() -> None:
    if not Path("/sys/kernel/mm/transparent_hugepage/enabled").exists():
        pytest.skip("this kernel was built without transparent huge pages")
    large, small = torch.empty(20_000, 512), torch.empty(1000, 512)
    before = asks_for_huge_pages(small)  # where memory is used again it may hold the advice already
    assert huge_pages.fresh(large) is large
    assert huge_pages.fresh(small) is small
    assert asks_for_huge_pages(large)
    assert asks_for_huge_pages(small) == before


@pytest.mark.parametrize(
    "tensor",
    [torch.empty(0), torch.empty(3, device="meta"), torch.zeros(3000, 1000).T, torch.zeros(2_100_001)[1:]],
    ids=["empty", "meta", "transposed", "unaligned"],
)
def test_any_tensor_comes_back_as_it_was(tensor: Tensor) -> None:
    assert huge_pages.fresh(tensor) is tensor
    assert tensor.device.type == "meta" or not tensor.any()


def test_systems_without_the_call_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    huge_pages._madvise.cache_clear()
    large = torch.zeros(20_000, 512)
    assert not huge_pages.fresh(large).any()
    huge_pages._madvise.cache_clear()
