"""Memory that a head keeps from one training step to the next.

Shapes: N batch, R rows of class weights, D embedding, K rows of a chunk.
"""

import weakref

import torch
from torch import Tensor

from search_space import huge_pages


class Buffers:
    """Memory that a head keeps from step to step, since getting it anew costs time: E and the weights' gradient.

    It holds one step. RuntimeError is raised for a second forward while the first may still be differentiated, and for
    a backward onto a gradient that is still there: gradients do not accumulate, and `zero_grad` must set them to None.
    """

    def __init__(self) -> None:
        self._pushes = self._gradient = torch.empty(0)
        self._user: weakref.ref[object] | None = None

    def __reduce__(self) -> tuple[type["Buffers"], tuple[()]]:
        """A copy starts empty."""
        return Buffers, ()

    def lend(self, user: object) -> None:
        """From now on to this batch."""
        if self._user is not None and self._user() is not None:
            raise RuntimeError("persistent buffers hold one batch, but there is a forward whose backward has not run")
        self._user = weakref.ref(user)

    def release(self) -> None:
        """The batch's backward runs: the next forward may come, even while the graph of this one is still held."""
        self._user = None

    def pushes(self, like_NK: Tensor, columns_before: int, columns: int) -> Tensor:
        """Room for E of a chunk; the chunks before and with it have so many columns of all."""
        count = len(like_NK)
        self._pushes = _of_size(self._pushes, like_NK, count * columns)
        start = count * columns_before
        return self._pushes[start : start + like_NK.numel()].view_as(like_NK)

    def gradient(self, w_RD: Tensor) -> Tensor:
        """Room for the gradient of the class weights."""
        if w_RD.is_leaf and w_RD.grad is not None:
            raise RuntimeError(
                "persistent buffers hold one gradient and cannot add to it: "
                "call zero_grad(set_to_none=True) before each backward"
            )
        self._gradient = _of_size(self._gradient, w_RD, w_RD.numel())
        return self._gradient.view_as(w_RD)


def _of_size(held: Tensor, like: Tensor, size: int) -> Tensor:
    fits = held.numel() == size and held.dtype == like.dtype and held.device == like.device
    return held if fits else huge_pages.fresh(like.new_empty(size))
