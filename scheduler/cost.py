"""What a piece of work costs, in weighted tokens.

A new token costs more than a prompt token, because prompts are read many tokens a step and
answers are written one a step. Before the work, its cost is bounded from above by the most tokens
it may produce; the fair queue gives back what was not used.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Cost of one prompt token.
COST_PER_PROMPT_TOKEN = 1
#: Cost of one new token.
COST_PER_NEW_TOKEN = 2


@dataclass(frozen=True, slots=True)
class Estimate:
    """A predicted cost in the parts that a ``Submission`` carries."""

    estimated_cost: int
    prompt_cost: int
    cost_per_token: int


def estimate(num_prompt_tokens: int, max_new_tokens: int) -> Estimate:
    """The most that work can cost; never 0, so that nothing is for free.

    With ``max_new_tokens`` 0 (an encoder) the cost is known beforehand and no token adds to it.
    """
    if num_prompt_tokens < 0 or max_new_tokens < 0:
        given = f"{num_prompt_tokens} prompt and {max_new_tokens} new"
        raise ValueError(f"token counts must not be negative, not {given}")
    prompt_cost = COST_PER_PROMPT_TOKEN * num_prompt_tokens
    per_token = COST_PER_NEW_TOKEN if max_new_tokens else 0
    return Estimate(max(1, prompt_cost + per_token * max_new_tokens), prompt_cost, per_token)
