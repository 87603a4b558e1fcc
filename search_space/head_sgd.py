"""`HeadSGD`: SGD on the class weights of a head, in its backward, so that their gradient is never whole in memory.

Shapes: R rows of class weights, D embedding, K rows of a chunk.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Step(NamedTuple):
    """An update of class weights, part by part. The momentum buffer is R×D, None where there is no momentum."""

    learning_rate: float
    momentum: float
    weight_decay: float
    buffer_RD: Tensor | None

    def take(self, w_KD: Tensor, grad_KD: Tensor, start: int) -> None:
        """Move class weights `start` and following down their gradient, which is used up (`torch.optim.SGD`)."""
        if self.weight_decay:
            grad_KD.add_(w_KD, alpha=self.weight_decay)
        if self.buffer_RD is not None:
            grad_KD = self.buffer_RD[start : start + len(w_KD)].mul_(self.momentum).add_(grad_KD)
        w_KD.add_(grad_KD, alpha=-self.learning_rate)


class Steppable(nn.Module):
    """A head whose class weights `HeadSGD` can update."""

    weight: nn.Parameter
    fused_step: "HeadSGD | None" = None


class HeadSGD(torch.optim.SGD):
    """SGD with momentum on `head.weight`, chunk by chunk while the head's backward has a chunk's gradient in cache.

    Give every other parameter, the head's own ones too, to another optimiser; then train as with any two:
    `loss.backward()` updates the class weights at the learning rate that this optimiser has by then, and `step()` finds
    nothing left to do, as `head.weight.grad` is None. Where the head runs `plain`, sees a sample of its classes, has
    the regularizer 'hyperspherical_energy', or is a `MarginHead` where a group of `torch.distributed` is set up, whose
    gradients are averaged first, the gradient is made as always and `step()` takes the step. Either way it is
    `torch.optim.SGD`'s, whose learning-rate schedules and `state_dict` it has.

    Every backward is a step: gradients cannot be accumulated, clipped, or scaled (`torch.amp.GradScaler`), and one
    forward has one backward. Nothing else may have a gradient by the class weights: `step()` raises RuntimeError where
    it finds one behind a step that backward has taken. Raises TypeError for a module that is no head.
    """

    _taken = False
    """Whether backward has taken a step since the last `step()`."""

    def __init__(self, head: Steppable, *, lr: float = 1e-3, momentum: float = 0.0, weight_decay: float = 0.0) -> None:
        if not isinstance(head, Steppable):
            raise TypeError(f"HeadSGD needs a MarginHead or ShardedMarginHead, but got {type(head).__name__}")
        super().__init__([head.weight], lr=lr, momentum=momentum, weight_decay=weight_decay)
        head.fused_step = self
        self.register_step_pre_hook(_refuse_second_step)

    def takes(self, w_RD: Tensor) -> bool:
        """Whether these are its class weights, whole and as they are stored, in a precision that is updated here."""
        return w_RD is self.param_groups[0]["params"][0] and w_RD.dtype in (torch.float32, torch.float64)

    def now(self) -> Step:
        """What backward is to do with the class weights; the momentum buffer begins at zero."""
        self._taken = True
        (group,) = self.param_groups
        (weight_RD,) = group["params"]
        state = self.state[weight_RD]
        if group["momentum"] and state.get("momentum_buffer") is None:
            state["momentum_buffer"] = torch.zeros_like(weight_RD)
        buffer_RD = state["momentum_buffer"] if group["momentum"] else None
        return Step(float(group["lr"]), group["momentum"], group["weight_decay"], buffer_RD)


def _refuse_second_step(optimizer: torch.optim.Optimizer, *_: object) -> None:
    if not isinstance(optimizer, HeadSGD):
        return
    taken, optimizer._taken = optimizer._taken, False
    if taken and optimizer.param_groups[0]["params"][0].grad is not None:
        raise RuntimeError(
            "the head's backward has stepped its class weights, and yet they have a gradient; keep them out of every "
            "other term of the loss, or give them to torch.optim.SGD"
        )
