"""`MarginHead`: a loss with its class weights, for anyone's training loop."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from search_space.chunked import GradientDtype, Memory, refuse_unknown
from search_space.distributed import in_group
from search_space.head_sgd import Steppable
from search_space.loss import Loss, build, carries_over
from search_space.margin_loss import Implementation, margin_loss, refuse_batch
from search_space.spec import LossSpec
from search_space.step_buffers import Buffers


class MarginHead(Steppable):
    """Class weights and a loss: `(embeddings_ND, labels_N)` → the batch's mean loss.

    Give its parameters to the optimiser beside the network's; `state_dict` holds the weights and whatever the loss
    tracks or learns. `class_counts` gives the training images of each class, where a margin depends on them.
    `sample_rate` below 1 computes the loss over the batch's own classes and as many random others as make that share
    of all (Partial FC, An et al. 2021). For half precision use autocast: `head.half()` would round what the loss
    tracks. `generator` makes the initial weights repeatable (rows of expected norm 1).

    `impl`, `memory` and `gradient_dtype` say how `margin_loss` computes it. With `persistent_buffers` what `chunked` or
    `triton` allocates stays with the head: one forward, one backward, `zero_grad(set_to_none=True)`, in turn; anything
    else raises RuntimeError.
    """

    def __init__(
        self,
        spec: LossSpec,
        num_classes: int,
        dim: int,
        *,
        class_counts: Sequence[int] | None = None,
        sample_rate: float = 1.0,
        generator: torch.Generator | None = None,
        impl: Implementation = "auto",
        memory: Memory = "store",
        gradient_dtype: GradientDtype = "float32",
        persistent_buffers: bool = False,
    ) -> None:
        super().__init__()
        if not 0 < sample_rate <= 1:
            raise ValueError(f"sample_rate must lie in (0, 1], but got sample_rate={sample_rate}")
        refuse_unknown("impl", impl, Implementation)
        refuse_unknown("memory", memory, Memory)
        refuse_unknown("gradient_dtype", gradient_dtype, GradientDtype)
        self._num_classes, self._class_counts = num_classes, class_counts
        self._classes_seen = max(2, round(sample_rate * num_classes))
        self.impl, self.memory, self.gradient_dtype = impl, memory, gradient_dtype
        self.persistent_buffers = persistent_buffers
        self._kept = Buffers() if persistent_buffers else None
        self.loss = self._build(spec)
        self.weight = nn.Parameter(torch.randn(num_classes * spec.centers, dim, generator=generator) / dim**0.5)

    def _build(self, spec: LossSpec) -> Loss:
        return build(
            spec, num_classes=self._num_classes, class_counts=self._class_counts, classes_seen=self._classes_seen
        )

    def use(self, spec: LossSpec) -> None:
        """Go on under another loss, with the same class weights: call it where a `LossSchedule` changes.

        What the old loss tracked (AdaCos's scale) or learned carries over where it means the same in the new one.
        Parameters that both have stay the very objects that an optimiser holds; give it those that a new loss begins to
        learn. `DistributedDataParallel` around the head must be made anew where the new loss learns other parameters.
        Raises ValueError when the new loss needs another number of class weights.
        """
        if spec == self.loss.spec:
            return
        if spec.centers != self.loss.spec.centers:
            raise ValueError(
                f"the head has {self.loss.spec.centers} class weights a class, but the loss has centers={spec.centers}"
            )
        old, new = self.loss, self._build(spec)
        self.loss = new.to(self.weight.device).train(self.training)
        self.loss.generator = old.generator
        kept = {name: value for name, value in old.state_dict().items() if carries_over(name, old.spec, spec)}
        state = {**self.loss.state_dict(), **kept}
        learned = dict(old.named_parameters())
        for name in [name for name, _ in self.loss.named_parameters() if name in learned]:
            owner, _, leaf = name.rpartition(".")
            setattr(self.loss.get_submodule(owner), leaf, learned[name])
        self.loss.load_state_dict({name: state[name] for name in self.loss.state_dict()})

    def forward(self, embeddings_ND: Tensor, labels_N: Tensor) -> Tensor:
        """Mean loss of the batch, a scalar.

        Raises ValueError when the embeddings' width is not `dim`, for an empty batch, and unless each embedding has one
        label of int64.
        """
        refuse_batch(embeddings_ND, labels_N, self.weight.shape[1])
        if not len(labels_N):
            raise ValueError("a batch must have one embedding at least, but is empty")
        losses_N: Tensor
        if self._classes_seen == self._num_classes:
            losses_N = self._losses(embeddings_ND, self.weight, labels_N, None)
        else:
            class_S = self._sampled(labels_N)
            weight_SKD = self.weight.view(self._num_classes, -1, self.weight.shape[1])[class_S]
            column_N = torch.searchsorted(class_S, labels_N)
            losses_N = self._losses(embeddings_ND, weight_SKD.flatten(0, 1), column_N, labels_N)
        return losses_N.mean()

    def _losses(self, x_ND: Tensor, w_RD: Tensor, label_N: Tensor, class_N: Tensor | None) -> Tensor:
        return margin_loss(
            self.loss,
            x_ND,
            w_RD,
            label_N,
            class_N=class_N,
            impl=self.impl,
            memory=self.memory,
            gradient_dtype=self.gradient_dtype,
            buffers=self._kept,
            fused_step=None if in_group() else self.fused_step,
        )

    def _sampled(self, labels_N: Tensor) -> Tensor:
        """The batch's classes and random others, S of them, rising."""
        if len(labels_N) > self._classes_seen:
            raise ValueError(
                f"sample_rate leaves {self._classes_seen} of {self._num_classes} classes, too few for a batch of "
                f"{len(labels_N)}; raise it"
            )
        priority_C = torch.rand(self._num_classes, device=labels_N.device)
        priority_C.scatter_(0, labels_N, 2.0)  # which refuses negative labels
        return priority_C.topk(self._classes_seen).indices.sort().values
