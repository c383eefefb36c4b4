"""Output layer and label-smoothed cross entropy in one, beside its plain reference.

The loss of a row is −Σ_v q_v · log softmax(h·Wᵀ)_v with q = (1−ε)·onehot + ε/V (Szegedy et al., 2016; section 5.4 of
the paper). The fused form takes the rows in chunks and makes the gradients at once, so that the logits of all rows
[N, V] never exist together.

Shapes: N rows, C rows of a chunk, D d_model, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from seq2seq.support.devices import compute_dtype

CHUNK = 2048


def linear_cross_entropy_reference(
    h_ND: Tensor, w_VD: Tensor, target_N: Tensor, smoothing: float
) -> tuple[Tensor, Tensor]:
    """The summed smoothed loss, and the summed unsmoothed one (for perplexity, without gradient)."""
    logits_NV = F.linear(h_ND, w_VD).float()
    smoothed = F.cross_entropy(logits_NV, target_N, reduction="sum", label_smoothing=smoothing)
    return smoothed, F.cross_entropy(logits_NV.detach(), target_N, reduction="sum")


def linear_cross_entropy(h_ND: Tensor, w_VD: Tensor, target_N: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """The same two sums, chunk by chunk; products in the autocast format where one is active, sums in float32."""
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
            grad_w = torch.zeros_like(w_VD) if need_w else None
            smoothed = torch.zeros((), device=h_ND.device)
            plain = torch.zeros((), device=h_ND.device)
            mean_D = w_VD.float().mean(0)
            uniform_D = torch.zeros_like(mean_D)
            for start in range(0, h_ND.shape[0], CHUNK):
                rows = slice(start, start + CHUNK)
                h_CD, target_C1 = h_ND[rows].to(dtype), target_N[rows, None]
                logits_CV = F.linear(h_CD, weight)
                p_CV = logits_CV.softmax(-1, dtype=torch.float32)
                # log Σexp from the largest logit: its probability is at least 1/V, so its logarithm is safe.
                lse_C = logits_CV.amax(-1).float() - p_CV.amax(-1).log()
                nll = (lse_C - logits_CV.gather(1, target_C1)[:, 0]).sum()
                # Σ_v of the logits needs no pass over them: it is V times h · mean(W).
                sum_D = h_ND[rows].float().sum(0)
                uniform = lse_C.sum() - torch.dot(sum_D, mean_D)
                plain += nll
                smoothed += (1 - smoothing) * nll + smoothing * uniform
                if not (need_h or need_w):
                    continue
                # p − q is the gradient of the loss by the logits; the part of it that is the same everywhere, −ε/V,
                # needs no pass over them either.
                p_CV.scatter_add_(1, target_C1, p_CV.new_full(target_C1.shape, smoothing - 1))
                grad_CV = p_CV.to(dtype)
                if grad_h is not None:
                    grad_h[rows] = (grad_CV @ weight) - (smoothing * mean_D).to(dtype)
                if grad_w is not None:
                    grad_w += grad_CV.T @ h_CD
                    uniform_D += sum_D
            if grad_w is not None:
                grad_w -= smoothing / w_VD.shape[0] * uniform_D
        ctx.save_for_backward(grad_h, grad_w)
        ctx.mark_non_differentiable(plain)
        return smoothed, plain

    @staticmethod
    def backward(ctx: Any, scale: Tensor, _: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        grad_h, grad_w = ctx.saved_tensors
        return (
            None if grad_h is None else grad_h * scale.to(grad_h.dtype),
            None if grad_w is None else grad_w * scale,
            None,
            None,
        )
