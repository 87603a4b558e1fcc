"""`margin_loss`: the loss of a batch, by the implementation that suits its device and shape."""

import functools
import logging
from typing import Literal

import torch
from torch import Tensor

from search_space import parts, triton_head
from search_space.chunked import GradientDtype, Memory, refuse_unknown
from search_space.head_sgd import HeadSGD
from search_space.loss import NOT_CHUNKED, Loss
from search_space.spec import LossSpec
from search_space.step_buffers import Buffers

Chosen = Literal["plain", "chunked", "triton"]
Implementation = Literal["auto", "plain", "chunked", "triton"]

CHUNKED_ROWS = 4096
"""On a CPU so many class weights make `chunked` the faster one (`tests/bench/head.py`): 1.2 times at least."""

TRITON_ROWS = 16_384
"""On a GPU so many class weights go to the kernels, where they can run; a guess, as they were not timed yet."""

PLAIN_BYTES = 2**30
"""On other devices, where `chunked` was not timed, the plain form's matrices may have this size."""

_log = logging.getLogger(__name__)


def margin_loss(
    loss: Loss,
    x_ND: Tensor,
    w_RD: Tensor,
    label_N: Tensor,
    *,
    class_N: Tensor | None = None,
    impl: Implementation = "auto",
    memory: Memory = "store",
    gradient_dtype: GradientDtype = "float32",
    buffers: Buffers | None = None,
    fused_step: HeadSGD | None = None,
) -> Tensor:
    """Loss of each sample, N: what `loss(x_ND, w_RD, label_N, class_N=class_N)` is, for any implementation.

    For a softmax of the logits that is

        cos_NC = F.normalize(x_ND) @ F.normalize(w_CD).T
        negative_NC = (s * n(cos_NC)).scatter(1, label_N[:, None], -inf)
        loss_N = F.softplus(negative_NC.logsumexp(1) - s * f(cos_NC.gather(1, label_N[:, None]).squeeze(1)))

    `plain` computes it so. `chunked` does without a matrix of cosines, a normalised copy of the class weights or a
    gradient of either (`search_space.chunked`), and takes P2SGrad too. So does `triton`, by kernels on a GPU
    (`search_space.triton_head`). What `triton` cannot run falls back to `chunked`, what that cannot run to `plain`.
    `auto` chooses by device and shape. What was chosen and why is logged once. Under `torch.compile`, `auto` is
    `plain`, which traces into one graph.

    The rest is for `chunked` and `triton`. With `memory` `store` N×C numbers are kept for backward, `recompute` takes a
    third more arithmetic in their place (no slower where N > D). `gradient_dtype` of bfloat16 keeps these numbers, and
    multiplies them for the gradients, in bfloat16: off by 5e-3 of their norm at most; the loss stays as it is.
    `buffers` keeps what a step allocates for the next one. `fused_step` updates class weights that are its own in
    backward, and leaves them without a gradient (`HeadSGD`).

    Raises ValueError for `triton` without Triton, a GPU of compute capability 8.0, or for float64; and for an unknown
    `impl`, `memory` or `gradient_dtype`.
    """
    if impl == "plain" or (impl == "auto" and torch.compiler.is_compiling()):
        return loss(x_ND, w_RD, label_N, class_N=class_N)  # type: ignore[no-any-return]
    chosen, why = chosen_implementation(loss.spec, impl, x_ND, w_RD)
    say_once(f"{len(w_RD)} class weights, {w_RD.device.type}: '{chosen}', {why}")
    if chosen == "plain":
        return loss(x_ND, w_RD, label_N, class_N=class_N)  # type: ignore[no-any-return]
    return loss.chunked(
        x_ND,
        w_RD,
        label_N,
        class_N=class_N,
        memory=memory,
        gradient_dtype=gradient_dtype,
        buffers=buffers,
        fused_step=None if isinstance(loss.spec.regularizer, parts.EnergyRegularizer) else fused_step,
        kernels=chosen == "triton",
    )


def chosen_implementation(spec: LossSpec, impl: Implementation, x_ND: Tensor, w_RD: Tensor) -> tuple[Chosen, str]:
    """What runs, and why. Raises ValueError where `triton` is asked for and cannot run here."""
    refuse_unknown("impl", impl, Implementation)
    lacks = triton_head.missing(x_ND, w_RD)
    if impl == "triton" and lacks:
        raise ValueError(f"impl='triton' cannot run here: {lacks}")
    if isinstance(spec.objective, NOT_CHUNKED):
        return "plain", f"objective '{spec.objective.kind}' is no softmax of the logits"
    refused = triton_head.unsupported(spec, w_RD.shape[1])
    if impl == "triton":
        return ("chunked", refused) if refused else ("triton", "as asked for")
    if impl == "chunked":
        return "chunked", "as asked for"
    if w_RD.device.type == "cpu":
        many = len(w_RD) >= CHUNKED_ROWS
        return ("chunked", f"{CHUNKED_ROWS} or more") if many else ("plain", f"fewer than {CHUNKED_ROWS}")
    if not lacks and not refused and len(w_RD) >= TRITON_ROWS:
        return "triton", f"{TRITON_ROWS} or more"
    matrix_bytes = len(x_ND) * len(w_RD) * 4
    if matrix_bytes >= PLAIN_BYTES:
        return "chunked", f"a matrix of cosines would have {matrix_bytes / 2**30:.1f} GiB"
    return "plain", f"a matrix of cosines has {matrix_bytes / 2**20:.0f} MiB"


def refuse_batch(embeddings_ND: Tensor, labels_N: Tensor, dim: int) -> None:
    """Raises ValueError unless the embeddings are N×dim and each has one label of int64."""
    if embeddings_ND.ndim != 2 or embeddings_ND.shape[1] != dim:
        raise ValueError(f"embeddings must be N×{dim}, but got shape {tuple(embeddings_ND.shape)}")
    if labels_N.shape != embeddings_ND.shape[:1]:
        raise ValueError(
            f"labels must be one for each embedding, but got shape {tuple(labels_N.shape)} for {len(embeddings_ND)} "
            "embeddings"
        )
    if labels_N.dtype != torch.int64:
        raise ValueError(
            f"labels must be int64, but are {str(labels_N.dtype).removeprefix('torch.')}; use labels.long()"
        )


@functools.cache
def say_once(message: str) -> None:
    """Log how a head computes its loss."""
    _log.info("classification head: %s", message)
