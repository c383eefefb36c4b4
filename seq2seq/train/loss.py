"""The label-smoothed loss of a batch (section 5.4 of the paper)."""

from __future__ import annotations

from torch import Tensor, nn

from seq2seq.data.batches import Batch
from seq2seq.model.translation import TranslationModel
from seq2seq.ops.linear_cross_entropy import linear_cross_entropy


def batch_loss(model: TranslationModel, batch: Batch, smoothing: float) -> tuple[Tensor, Tensor]:
    """The sums over all target tokens: smoothed (to minimise), and the plain negative log-likelihood in nats."""
    return linear_cross_entropy(model(batch), model.output_weight, batch.target_out, smoothing)


class BatchLoss(nn.Module):
    """`batch_loss` as a module: ranks synchronise the gradients of what is computed inside a module."""

    def __init__(self, model: TranslationModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, smoothing: float) -> tuple[Tensor, Tensor]:
        """`batch_loss` of the model."""
        return batch_loss(self.model, batch, smoothing)
