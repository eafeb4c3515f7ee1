"""AutoModel's cross-entropy of whole logits, compiled: one pass over them forward and one backward.

Operator by operator it takes six, most of them of float32, and holds two copies of the logits as that: 1 GiB becomes 5
at a vocabulary of 128,256 and 4,096 tokens.
"""

from __future__ import annotations

from typing import Any

import torch

from cctrain.steps.number import OnDevice


def compile_loss(loss: Any) -> None:
    """Have torch fuse `loss`, an AutoModel recipe's, in place, for steps whose label tokens are on the device; once it
    did, `loss.is_fused` says so. Another kind of loss, and logits of which each rank has a part, stay as they are."""
    if type(loss).__name__ != "MaskedCrossEntropy" or loss.reduction != "sum":
        return
    own = loss.forward
    fused = torch.compile(own)

    def forward(
        logits: torch.Tensor,
        labels: torch.Tensor,
        mask: Any = None,
        num_label_tokens: Any = None,
        loss_weights: Any = None,
    ) -> Any:
        # logits (rows, sequence, vocabulary), labels (rows, sequence); the step's own, not that of a validation
        is_plain = type(logits) is torch.Tensor and mask is None and loss_weights is None
        if not is_plain or not isinstance(num_label_tokens, OnDevice):
            return own(logits, labels, mask, num_label_tokens, loss_weights)
        loss.is_fused = True
        return fused(logits, labels) / num_label_tokens

    loss.forward = forward
