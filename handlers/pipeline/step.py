"""One step of the pipeline as a value, and as the JSON that tells every stage of it.

A *step* runs some rows through all stages. Each row belongs to one slot and brings ``num_tokens``
tokens that start at position ``start``; a step is as wide as its longest row. Rows with
``num_tokens`` 0 only keep a shape and are computed for nothing.

Keys and values live in *blocks* of ``BLOCK`` positions. A stage keeps, for each slot, a table of
the blocks that hold its positions; a step says what changes in it before the rows are run. When
there are blocks enough for every slot to be full, slot ``s`` simply owns the blocks ``s * c`` to
``s * c + c - 1`` (``c`` blocks hold a whole context): its *home*, and no step names any.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

#: Positions in a block; also what windows are rounded up to, so that shapes repeat.
BLOCK: Final = 64


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the tokens of a sequence are drawn; the fields are those of ``GenerationRequest``."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    #: Which of the request's answers this is; with the seed and the position it makes the noise.
    index: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None
    json_schema: str | None = None
    regex: str | None = None


@dataclass(frozen=True, slots=True)
class Open:
    """A sequence takes a slot; only the last stage, which draws, needs to know."""

    slot: int
    sampling: Sampling
    prompt_token_ids: tuple[int, ...]
    #: Tokens of the answer that are known already, from an earlier attempt.
    generated: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """The share of one sequence in a step."""

    slot: int
    #: Position of the first token.
    start: int
    num_tokens: int
    #: Whether a token is drawn after the last one: not so in the middle of a prompt.
    is_drawn: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """Rows that go through the stages together."""

    #: Counts up; results are told apart by it.
    number: int
    #: Tokens of the widest row.
    width: int
    #: Positions from 0 that are attended to: the longest row's end, rounded up to blocks.
    window: int
    rows: tuple[Row, ...]
    #: The rows' tokens, each padded to the width; only the first stage needs them.
    token_ids: tuple[tuple[int, ...], ...] = ()
    #: Sequences whose first step this is.
    opens: tuple[Open, ...] = ()
    #: Changes of the slots' tables, before anything else: (slot, index in its table, block).
    tables: tuple[tuple[int, int, int], ...] = ()
    #: Blocks to copy after that and before the rows are run: (from, to).
    copies: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Draw:
    """What was drawn after a row."""

    token_id: int
    #: None unless asked for.
    logprob: float | None = None
    #: The likeliest tokens and their log probabilities, as many as were asked for.
    top: tuple[tuple[int, float], ...] = ()
    #: Why there is no token, such as logits that are not finite; empty when all is well.
    fault: str = ""


def encode(step: Step, *, is_first: bool, is_last: bool) -> dict[str, Any]:
    """The step as JSON values, with what a stage at that place needs."""
    # Written out because it is done for every step: `asdict` would copy each token.
    return {
        "number": step.number,
        "width": step.width,
        "window": step.window,
        "rows": [[row.slot, row.start, row.num_tokens, row.is_drawn] for row in step.rows],
        "token_ids": step.token_ids if is_first else (),
        "opens": [asdict(opened) for opened in step.opens] if is_last else (),
        "tables": step.tables,
        "copies": step.copies,
    }


def decode(document: dict[str, Any]) -> Step:
    """The step of :func:`encode`'s values, after they went through JSON."""
    return Step(
        document["number"],
        document["width"],
        document["window"],
        tuple(Row(*row) for row in document["rows"]),
        tuple(map(tuple, document["token_ids"])),
        tuple(_open(each) for each in document["opens"]),
        tuple(map(tuple, document["tables"])),
        tuple(map(tuple, document["copies"])),
    )


def _open(document: dict[str, Any]) -> Open:
    how = document["sampling"]
    how["logit_bias"] = tuple((int(token), float(bias)) for token, bias in how["logit_bias"])
    return Open(
        document["slot"],
        Sampling(**how),
        tuple(document["prompt_token_ids"]),
        tuple(document["generated"]),
    )
