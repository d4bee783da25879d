"""Answers that must match a JSON schema or a regular expression, by the llguidance library.

A *matcher* follows one answer and says before each token which ones may come. When the answer is
complete and cannot go on, only the end-of-sequence tokens may. Its state is a function of the
grammar and of the tokens so far, so a resumed answer replays them.

White space between the parts of a JSON answer is at most ``MAX_SPACES`` characters at a place: a
model that has lost its way would otherwise write spaces until its tokens run out.

What a grammar may cost is bounded by the library's own fuel: ``_LIMITS`` for the work before the
first token and for each further one. A grammar that needs more is refused by :func:`check`, or
ends its own answer with a fault.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

import numpy as np
import torch
from llguidance import LLExecutor, LLMatcher, LLParserLimits, LLTokenizer
from llguidance.hf import from_tokenizer
from llguidance.numpy import fill_next_token_bitmask_par
from numpy.typing import NDArray
from torch import Tensor

from handlers.pipeline.step import Sampling
from handlers.wire import BadRequest

#: Longest schema or expression, in bytes of UTF-8.
MAX_GRAMMAR_BYTES: Final = 128 * 1024
MAX_SPACES: Final = 64
#: Compiled grammars kept by a stage; the least recently used one goes first.
MAX_KEPT: Final = 64

_LIMITS: Final = LLParserLimits(
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=200_000,
    step_max_items=50_000,
    max_items_in_row=2_000,
    max_grammar_size=500_000,
    # A state takes one to two kilobytes, in each of the answers that are open.
    max_lexer_states=50_000,
    verbose_errors=False,
)
#: What a message from the library is cut to.
_MAX_MESSAGE_CHARS: Final = 300


class GrammarFault(RuntimeError):
    """A grammar that cannot be followed any further; the message says why."""


class Matcher:
    """Where one answer stands in its grammar."""

    def __init__(
        self, matcher: LLMatcher, vocabulary_size: int, generated: Sequence[int] = ()
    ) -> None:
        """``vocabulary_size`` is that of the library's tokenizer."""
        self._matcher = matcher
        #: How many words a mask has.
        self.num_words = (vocabulary_size + 31) // 32
        for token_id in generated:
            self.add(token_id)

    def __repr__(self) -> str:
        return f"<Matcher stopped={self._matcher.is_stopped()}>"

    @property
    def fault(self) -> str:
        """Why the grammar cannot be followed; empty when all is well."""
        return _message(self._matcher.get_error()) if self._matcher.is_error() else ""

    def add(self, token_id: int) -> None:
        """The answer goes on with a token; one that is not allowed sets ``fault``."""
        self._matcher.consume_token(token_id)

    def beside(self, row: int) -> tuple[LLMatcher, int]:
        """What the library takes: the matcher, and the row of masks to write."""
        return self._matcher, row


class Grammars:
    """The grammars of one vocabulary, each compiled once."""

    def __init__(
        self,
        tokenizer: Callable[[], Any],
        vocabulary_size: int,
        eos_token_ids: Collection[int] = (),
    ) -> None:
        """``tokenizer`` is called when the first grammar comes; see :func:`vocabulary`."""
        self._load, self._eos = tokenizer, tuple(eos_token_ids)
        self._vocabulary_size = vocabulary_size
        self._compiled = functools.lru_cache(MAX_KEPT)(self._compile)

    def __repr__(self) -> str:
        return f"<Grammars kept={self._compiled.cache_info().currsize}>"

    def prepare(self) -> None:
        """Load what every grammar needs: seconds, where the vocabulary is large.

        A tokenizer that takes no grammar is no fault of a model until a request asks for one.
        """
        with contextlib.suppress(GrammarFault):
            _ = self._vocabulary

    def open(self, how: Sampling, generated: Sequence[int]) -> Matcher:
        """A matcher that has seen ``generated``."""
        compiled = self._compiled(*_source(how))
        return Matcher(compiled.deep_copy(), self._vocabulary.vocab_size, generated)

    @functools.cached_property
    def _vocabulary(self) -> LLTokenizer:
        return vocabulary(self._load(), self._vocabulary_size, self._eos)

    def _compile(self, field: str, text: str) -> LLMatcher:
        return compile_grammar(field, text, self._vocabulary)


def check(how: Sampling, tokenizer: Any) -> None:
    """Refuse what asks for a grammar that cannot be used, before a stage sees it.

    Raises:
        BadRequest: the field ``json_schema`` or ``regex`` is not valid, not supported by the
            library, too large, or nothing matches it.
    """
    if how.json_schema is None and how.regex is None:
        return
    if how.json_schema is not None and how.regex is not None:
        raise BadRequest("regex", "give at most one of 'json_schema' and 'regex'")
    field, text = _source(how)
    if len(text.encode("utf-8", "surrogatepass")) > MAX_GRAMMAR_BYTES:
        raise BadRequest(field, f"is longer than {MAX_GRAMMAR_BYTES} bytes")
    try:
        compile_grammar(field, text, _vocabulary_of(tokenizer))
    except GrammarFault as error:
        raise BadRequest(field, str(error)) from None


def compile_grammar(field: str, text: str, words: LLTokenizer) -> LLMatcher:
    """A matcher at the beginning of an answer; ``field`` is ``json_schema`` or ``regex``.

    Raises:
        GrammarFault: it is not valid, not supported, too complex, or nothing matches it.
    """
    try:
        grammar = _GRAMMARS[field](text)
    except ValueError as error:
        raise GrammarFault(f"cannot be used: {_message(str(error))}") from None
    matcher = LLMatcher(words, grammar, log_level=0, limits=_LIMITS)
    if not matcher.is_error():
        # The first mask shows whether the automaton can be built, and is built only once.
        matcher.compute_bitmask()
    if matcher.is_error():
        raise GrammarFault(f"cannot be used: {_message(matcher.get_error())}")
    return matcher


def vocabulary(tokenizer: Any, size: int, eos_token_ids: Collection[int] = ()) -> LLTokenizer:
    """The tokens of a transformers tokenizer, as the library wants them.

    Args:
        size: how many logits the model has.
        eos_token_ids: what ends an answer; empty for the tokenizer's own.

    Raises:
        GrammarFault: the tokenizer is none of the fast ones, or has no end.
    """
    ends = sorted(eos_token_ids) or [tokenizer.eos_token_id]
    if ends == [None]:
        raise GrammarFault("cannot be used: this model has no end-of-sequence token")
    if not getattr(tokenizer, "is_fast", False):
        raise GrammarFault("cannot be used: this model's tokenizer is not a fast one")
    return from_tokenizer(tokenizer, n_vocab=max(size, len(tokenizer)), eos_token=ends)


def masks_of(matchers: Sequence[Matcher]) -> NDArray[np.int32]:
    """A bit for each token that may come next: int32 [matchers, words].

    They are computed beside each other on the machine's cores, without the interpreter's lock. A
    matcher that cannot go on has ``fault`` set.
    """
    masks = np.zeros((len(matchers), max(each.num_words for each in matchers)), np.int32)
    fill_next_token_bitmask_par(
        _executor(), [each.beside(row) for row, each in enumerate(matchers)], masks
    )
    return masks


def forbid(logits: Tensor, rows: Sequence[int], masks: NDArray[np.int32]) -> None:
    """Set logits to minus infinity where the mask has no bit.

    Args:
        logits: float32 [rows, vocabulary], changed in place.
        rows: which of them.
        masks: [len(rows), words], of :func:`masks_of`; at least a bit for each logit.
    """
    device = logits.device
    octets = torch.from_numpy(masks.view(np.uint8)).to(device)
    shifts = torch.arange(8, dtype=torch.uint8, device=device)
    bits = ((octets[:, :, None] >> shifts) & 1).flatten(1)[:, : logits.shape[-1]]
    where = torch.tensor(rows, device=device)
    logits[where] = logits[where].masked_fill(bits == 0, -torch.inf)


def _json_grammar(text: str) -> str:
    space = f"[ \\n\\r\\t]{{1,{MAX_SPACES}}}"
    return LLMatcher.grammar_from_json_schema(text, overrides={"whitespace_pattern": space})


_GRAMMARS: Final[dict[str, Callable[[str], str]]] = {
    "json_schema": _json_grammar,
    "regex": LLMatcher.grammar_from_regex,
}


def _source(how: Sampling) -> tuple[str, str]:
    if how.json_schema is not None:
        return "json_schema", how.json_schema
    if how.regex is not None:
        return "regex", how.regex
    raise ValueError("the answer has no grammar")


@functools.cache
def _executor() -> LLExecutor:
    return LLExecutor()


@functools.lru_cache(maxsize=4)
def _vocabulary_of(tokenizer: Any) -> LLTokenizer:
    return vocabulary(tokenizer, len(tokenizer))


def _message(error: str) -> str:
    """What the library says went wrong, in one line of bounded length."""
    line = " ".join(error.replace("<non-verbose/>", "").split())
    # What the library says when no token can come next and the answer is not complete.
    if line.startswith("NoExtension"):
        return "no text matches it"
    return line if len(line) <= _MAX_MESSAGE_CHARS else line[:_MAX_MESSAGE_CHARS] + " ..."
