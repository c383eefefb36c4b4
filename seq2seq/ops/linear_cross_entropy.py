"""Output layer fused with label-smoothed cross entropy, alongside its plain reference.

The loss of a row is −Σ_v q_v · log softmax(h·Wᵀ)_v with q = (1−ε)·onehot + ε/V (Szegedy et al., 2016; section 5.4 of
the paper). The fused form takes the rows in chunks and computes the gradients right away, so that the logits of all
rows [N, V] never exist at once.

Shapes: N rows, of which those whose target is −1 are ignored; C rows of a chunk; D d_model, V vocabulary.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from seq2seq.ops import native
from seq2seq.ops.gpu import next_power_of_2, supports_triton
from seq2seq.ops.product import add_product, product
from seq2seq.support.devices import compute_dtype

CHUNK = 2048
CHUNK_OF_GPU = 12800
BLOCK = 4096
"""Logits of a row that the GPU kernel reads at a time. It has 16 warps per row, so that few rows are computed at once:
more would evict one another from the cache before they are read again."""
CACHED = 128
"""Rows whose logits and probabilities fit in a CPU's cache."""


def linear_cross_entropy_reference(
    h_ND: Tensor, w_VD: Tensor, target_N: Tensor, smoothing: float
) -> tuple[Tensor, Tensor]:
    """The summed smoothed loss, and the summed unsmoothed one (for perplexity, without gradient), float32 scalars."""
    logits_NV = F.linear(h_ND, w_VD).float()
    nll = functools.partial(F.cross_entropy, target=target_N, ignore_index=-1, reduction="sum")
    return nll(logits_NV, label_smoothing=smoothing), nll(logits_NV.detach())


def linear_cross_entropy(h_ND: Tensor, w_VD: Tensor, target_N: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """The two sums of `linear_cross_entropy_reference`, chunk by chunk.

    Matmuls are in the autocast dtype where autocast is active, sums in float32.
    """
    if not torch.is_grad_enabled():
        # A parameter would count as one that needs a gradient even here.
        h_ND, w_VD = h_ND.detach(), w_VD.detach()
    loss, plain = _LinearCrossEntropy.apply(h_ND, w_VD, target_N, smoothing)  # type: ignore[no-untyped-call]
    return loss, plain


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h_ND: Tensor, w_VD: Tensor, target_N: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
        device = h_ND.device.type
        dtype = compute_dtype(h_ND)
        with torch.autocast(device, enabled=False):
            weight = w_VD.to(dtype)
            need_h, need_w = ctx.needs_input_grad[:2]
            grad_h = torch.empty_like(h_ND) if need_h else None
            grad_w = torch.empty_like(w_VD) if need_w else None
            smoothed = torch.zeros((), device=h_ND.device)
            plain = torch.zeros((), device=h_ND.device)
            mean_D = w_VD.float().mean(0)
            uniform_D = torch.zeros_like(mean_D)
            by_kernel = supports_triton(h_ND.device) or native.supports(weight)
            rows_of_buffer, chunk = _chunks(h_ND.shape[0], device, by_kernel)
            buffer = h_ND.new_empty(rows_of_buffer, w_VD.shape[0], dtype=dtype)
            to_gradients = _to_gradients_by_kernel if by_kernel else _to_gradients
            # Once for no rows too.
            for start in range(0, max(h_ND.shape[0], 1), chunk):
                rows = slice(start, start + chunk)
                h_CD, target_C = h_ND[rows].to(dtype), target_N[rows]
                logits_CV = product(h_CD, weight.t(), out=buffer[: h_CD.shape[0]])
                nll, lse = to_gradients(logits_CV, target_C, smoothing)
                # Σ_v of the logits needs no pass over them: it is V times h · mean(W).
                counts_C1 = (target_C >= 0)[:, None].float()
                sum_D = (h_ND[rows].float() * counts_C1).sum(0)
                plain += nll
                smoothed += (1 - smoothing) * nll + smoothing * (lse - torch.dot(sum_D, mean_D))
                if grad_h is not None:
                    grad_h[rows] = product(logits_CV, weight)
                    grad_h[rows] -= (counts_C1 * smoothing * mean_D).to(dtype)
                if grad_w is not None:
                    add_product(grad_w, logits_CV.t(), h_CD, first=start == 0)
                    uniform_D -= smoothing / w_VD.shape[0] * sum_D
        ctx.save_for_backward(grad_h, grad_w, uniform_D)
        ctx.mark_non_differentiable(plain)
        return smoothed, plain

    @staticmethod
    def backward(ctx: Any, scale: Tensor, _: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        grad_h, grad_w, uniform_D = ctx.saved_tensors
        if grad_w is not None:
            # Both parts summed and scaled in one pass
            grad_w = torch.addcmul((uniform_D * scale).to(grad_w.dtype), grad_w, scale.to(grad_w.dtype))
        return None if grad_h is None else grad_h * scale.to(grad_h.dtype), grad_w, None, None


def _chunks(rows: int, device: str, by_kernel: bool) -> tuple[int, int]:
    """How many rows of logits to make room for, and how many to compute at a time."""
    if device == "cpu":
        return min(CHUNK, rows), CHUNK
    # PyTorch's softmax makes a copy in float32.
    most = CHUNK_OF_GPU if by_kernel else CHUNK_OF_GPU // 2
    # The last chunk must not be a small remainder.
    even = max(128, -(-rows // max(1, -(-rows // most)) // 128) * 128)
    # Rounded to a few sizes, as the allocator keeps memory for each.
    return min(most, next_power_of_2(max(rows, 128))), even


def _to_gradients(logits_CV: Tensor, target_C: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """The sums over C rows of −log softmax at the target, and of log Σexp.

    In place, the logits become the gradients of the loss with respect to them, p − q, without the constant ε/V, whose
    effect on weights and rows needs no pass over the logits; rows without a target become zero.
    """
    nll, lse = torch.zeros(2, device=logits_CV.device)
    on_cpu = logits_CV.device.type == "cpu"
    size = CACHED if on_cpu else max(len(target_C), 1)
    for start in range(0, len(target_C), size):
        logits, target = logits_CV[start : start + size], target_C[start : start + size, None]
        counts, target = (target >= 0).float(), target.clamp(min=0)
        # A CPU's softmax would convert to float32 too, and bfloat16 maxima are slow there; a GPU's reads any dtype.
        read = logits.float() if on_cpu else logits
        p = read.softmax(-1, dtype=torch.float32)
        # Via the largest logit: its probability is at least 1/V, so the logarithm is safe.
        lse_of_rows = read.amax(-1).float() - p.amax(-1).log()
        nll += ((lse_of_rows - read.gather(1, target)[:, 0]) * counts[:, 0]).sum()
        lse += (lse_of_rows * counts[:, 0]).sum()
        logits.copy_(p.scatter_add_(1, target, p.new_full(target.shape, smoothing - 1)).mul_(counts))
    return nll, lse


def _to_gradients_by_kernel(logits_CV: Tensor, target_C: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """`_to_gradients` by our own kernels, which read a row twice, the second time from cache, and write it once."""
    rows, vocabulary = logits_CV.shape
    nll_C, lse_C = torch.empty(2, rows, device=logits_CV.device, dtype=torch.float32)
    if native.supports(logits_CV):
        if rows and int(target_C.max()) >= vocabulary:
            raise IndexError(f"target {int(target_C.max())} of a vocabulary of {vocabulary}")
        tensors = logits_CV, target_C.long(), nll_C, lse_C
        native.call("logits_to_gradients", *tensors, rows, vocabulary, float(1 - smoothing))
    elif rows:
        from seq2seq.ops import gpu_kernels

        sizes = {"V": vocabulary, "BLOCK": min(BLOCK, next_power_of_2(vocabulary)), "num_warps": 16}
        gpu_kernels.logits_to_gradients[(rows,)](
            logits_CV, target_C, nll_C, lse_C, logits_CV.stride(0), 1 - smoothing, **sizes
        )
    return nll_C.sum(), lse_C.sum()
