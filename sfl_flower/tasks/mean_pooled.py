"""A BERT classifier on the mean of its last hidden states, as sentence encoders are trained."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import BertForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutput

__all__ = ["MeanPooledBert"]


class MeanPooledBert(BertForSequenceClassification):
    """``BertForSequenceClassification`` whose linear layer reads the mean over real positions.

    Parameters
    ----------
    config : transformers.BertConfig
        With ``num_labels``.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.bert.pooler = None

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **_: Any,
    ) -> SequenceClassifierOutput:
        """Return logits [N, classes], of ids [N, T] or of hidden states [N, T, H] with their mask.

        Parameters
        ----------
        input_ids, inputs_embeds : Tensor
            One of the two.
        attention_mask : Tensor
            [N, T], 1 where a position is real.
        """
        assert attention_mask is not None
        hidden = self.bert(
            input_ids=input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds
        ).last_hidden_state
        real = attention_mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * real).sum(dim=1) / real.sum(dim=1).clamp(min=1.0)
        return SequenceClassifierOutput(logits=self.classifier(self.dropout(mean)))
