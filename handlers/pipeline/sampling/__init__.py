"""Draws the next token of each row, on the last stage: :class:`Sampler` does, the rest decides.

A draw is ``argmax(logit / temperature + noise)`` over the tokens that the filters leave, with
Gumbel noise: that is a draw from the softmax. What happens to a row's logits, in this order:

1. the repetition penalty, on the model's own logits (:mod:`.adjustments`);
2. presence and frequency penalties and the logit bias, which are sums (the same file);
3. tokens that the grammar does not allow are left out (:mod:`.grammar`);
4. without a temperature the likeliest token is taken; else logits are divided by it;
5. top-k, then top-p of what it leaves, then min-p (:mod:`.filters`);
6. the noise decides (:mod:`.noise`, :mod:`.choice`).

Log probabilities (:mod:`.logprobs`) are those of the model's own distribution, before all this.
"""

from __future__ import annotations

from handlers.pipeline.sampling.grammar import check
from handlers.pipeline.sampling.sampler import Sampler

__all__ = ["Sampler", "check"]
