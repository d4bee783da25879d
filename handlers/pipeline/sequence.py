"""One answer in the making, as the schedule sees it: its tokens and how far the stages are.

Stages work in order, so a token counts as *cached* as soon as a step with it was issued: whatever
is issued later finds its keys and values. Only a draw has to be waited for.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from handlers.pipeline.step import Open, Sampling


@dataclass(slots=True, eq=False)
class Sequence:
    """The tokens of one answer. The caller fills the fields up to ``suspect_until``."""

    request_id: str
    #: Which of the request's answers this is.
    index: int
    #: Prompt, then generated tokens.
    token_ids: list[int]
    num_prompt: int
    sampling: Sampling = field(default_factory=Sampling)
    #: It runs alone while it has no more tokens than this; None: it is trusted.
    suspect_until: int | None = None

    #: Tokens that were issued, from the first; the schedule's, like all below.
    num_cached: int = 0
    #: None: waiting, or removed.
    slot: int | None = None
    #: Counts up in the order of arrival.
    arrival: int = 0
    #: Grows when the slot is lost, so that results of steps from before are not taken.
    life: int = 0
    #: Whether the last stage was told of it since it has its slot.
    is_open: bool = False
    #: Steps issued in all when it was last in one or got its slot: who waited longest goes first.
    last_issue: int = 0
    #: Prefill steps issued since it was last in a step.
    num_prefills_passed: int = 0
    #: Its draw had a fault; it is in no further step while it has its slot.
    is_faulty: bool = False
    #: Whether its known tokens are being drawn again, in exact mode.
    is_replaying: bool = False
    #: Keys of its full blocks, as far as they were needed.
    keys: list[bytes] = field(default_factory=list)

    @property
    def num_missing(self) -> int:
        """Tokens to issue before the next one is drawn; 0 while that draw is awaited."""
        return len(self.token_ids) - self.num_cached

    @property
    def is_suspect(self) -> bool:
        """Whether it runs alone."""
        return self.suspect_until is not None and len(self.token_ids) <= self.suspect_until

    def opening(self, num_generated: int | None = None) -> Open:
        """What the last stage has to know; by default all generated tokens are."""
        assert self.slot is not None
        prompt, generated = self.token_ids[: self.num_prompt], self.token_ids[self.num_prompt :]
        return Open(self.slot, self.sampling, tuple(prompt), tuple(generated[:num_generated]))
