"""`MarginHead`: a loss with its class weights, for anyone's training loop."""

import torch
from torch import Tensor, nn

from search_space.loss import build
from search_space.spec import LossSpec


class MarginHead(nn.Module):
    """Class weights and a loss: `(embeddings_ND, labels_N)` → the batch's mean loss.

    Give its parameters to the optimiser beside the network's; `state_dict` holds the weights and whatever the loss
    tracks. `generator` makes the initial weights repeatable (rows of expected norm 1).
    """

    def __init__(self, spec: LossSpec, num_classes: int, dim: int, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.loss = build(spec, num_classes=num_classes)
        self.weight = nn.Parameter(torch.randn(num_classes, dim, generator=generator) / dim**0.5)

    def use(self, spec: LossSpec) -> None:
        """Go on under another loss, with the same class weights: call it where a `LossSchedule` changes.

        What the old loss tracked (AdaCos's scale) carries over where the new one tracks the same.
        """
        if spec == self.loss.spec:
            return
        old, new = self.loss, build(spec, num_classes=len(self.weight))
        self.loss = new.to(self.weight.device).train(self.training)
        if old.state_dict().keys() == self.loss.state_dict().keys():
            self.loss.load_state_dict(old.state_dict())

    def forward(self, embeddings_ND: Tensor, labels_N: Tensor) -> Tensor:
        """Mean loss of the batch, a scalar. Raises ValueError when the embeddings' width is not `dim`."""
        if embeddings_ND.ndim != 2 or embeddings_ND.shape[1] != self.weight.shape[1]:
            raise ValueError(f"embeddings must be N×{self.weight.shape[1]}, but got shape {tuple(embeddings_ND.shape)}")
        losses_N: Tensor = self.loss(embeddings_ND, self.weight, labels_N)
        return losses_N.mean()
