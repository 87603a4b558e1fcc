import numpy as np
import pytest
import torch

from trainers.checkpoint import pack, unpack

TENSORS = {"b": torch.arange(6.0).view(2, 3), "a": torch.tensor(7), "half": torch.ones(3, dtype=torch.bfloat16)}
META = {"epoch": 3, "nested": {"list": [1, 2.5, None, "é"]}}


def test_unpack_gives_what_pack_was_given() -> None:
    tensors, meta = unpack(pack(TENSORS, META))
    assert meta == META
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


def test_equal_content_gives_equal_bytes_in_whatever_order_and_memory_format_it_comes() -> None:
    image = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    one = pack({"image": image, **TENSORS}, {"x": 1, "y": 2})
    strided = image.contiguous(memory_format=torch.channels_last)
    other = pack({**TENSORS, "image": strided}, {"y": 2, "x": 1})
    assert one.tobytes() == other.tobytes()


def test_tensors_from_a_read_only_array_are_writable_copies() -> None:
    payload = pack(TENSORS, META)
    payload.flags.writeable = False
    before = payload.tobytes()
    unpack(payload)[0]["b"].zero_()
    assert payload.tobytes() == before


@pytest.mark.parametrize(
    "payload",
    [
        np.zeros(0, dtype=np.uint8),
        np.full(100, 255, dtype=np.uint8),
        pack(TENSORS, META)[:-1],
        np.frombuffer(b"\x02\x00\x00\x00\x00\x00\x00\x00{}", dtype=np.uint8),
    ],
    ids=["empty", "noise", "torn", "foreign"],
)
def test_what_is_no_checkpoint_is_refused(payload: np.ndarray) -> None:
    with pytest.raises(ValueError, match=rf"not a checkpoint of this program \({len(payload)} bytes\)"):
        unpack(payload)
