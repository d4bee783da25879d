"""Turns tokens into text as they come, and finds stop strings in it.

What has been emitted after n tokens is a function of these n tokens (and of the prompt's end):
tokens are taken one at a time, and there is no other state. So whoever replays the tokens of an
earlier attempt stands exactly where that attempt stood, and says nothing twice.

Two things are held back: bytes that may be half of a character, and text that may be the
beginning of a stop string. Both come out with the last token. A stop string ends the text before
its first character.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

#: Turns token ids into text; special tokens give none.
Decode = Callable[[Sequence[int]], str]

#: What a decoder shows for bytes that are no character, or not yet.
_REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"
#: Tokens of the prompt that are decoded along: some tokenizers treat the first one differently.
_NUM_CONTEXT: Final = 6
#: Tokens after which bytes are no longer waited for: a character has four at most.
_MAX_INCOMPLETE: Final = 16


class Detokenizer:
    """The text of one answer, token by token."""

    def __init__(
        self, decode: Decode, prompt_token_ids: Sequence[int], stop: Sequence[str] = ()
    ) -> None:
        self._decode = decode
        self._stop = tuple(stop)
        #: The last tokens only: those before `_first` are never looked at again.
        self._window = list(prompt_token_ids[-_NUM_CONTEXT:])
        #: Tokens of the window whose text is known and complete.
        self._num_complete = len(self._window)
        # A prompt may end within a character; the answer then begins with all of it.
        self._complete_text = decode(self._window).rstrip(_REPLACEMENT)
        self._held = ""
        self.is_stopped = False

    def add(self, token_id: int, is_last: bool = False) -> str:
        """Take the next token; ``is_last`` when nothing follows it, whatever it says.

        Returns:
            The text to emit now. When a stop string came up it ends before that, and
            ``is_stopped`` is set.
        """
        self._held += self._advance(token_id, is_last)
        if (start := self._find_stop()) is not None:
            self.is_stopped = True
            return self._release(start)
        if is_last:
            return self._release(len(self._held))
        return self._release(len(self._held) - self._longest_beginning())

    def _advance(self, token_id: int, is_last: bool) -> str:
        """The text that becomes complete with a token."""
        self._window.append(token_id)
        text = self._decode(self._window)
        num_pending = len(self._window) - self._num_complete
        if num_pending == 1 and text == self._complete_text:
            self._window.pop()  # a special token; a run of them must not make the window grow
            return ""
        is_incomplete = text.endswith(_REPLACEMENT) and num_pending < _MAX_INCOMPLETE
        if (is_incomplete and not is_last) or len(text) <= len(self._complete_text):
            return ""
        new = text[len(self._complete_text) :]
        self._window = self._window[self._num_complete :]
        self._num_complete = len(self._window)
        self._complete_text = self._decode(self._window)
        return new

    def _find_stop(self) -> int | None:
        starts = [start for stop in self._stop if (start := self._held.find(stop)) >= 0]
        return min(starts, default=None)

    def _longest_beginning(self) -> int:
        """Characters at the end of what is held that may begin a stop string."""
        longest = min(len(self._held), max(map(len, self._stop), default=1) - 1)
        for length in range(longest, 0, -1):
            end = self._held[-length:]
            if any(stop.startswith(end) for stop in self._stop):
                return length
        return 0

    def _release(self, length: int) -> str:
        released, self._held = self._held[:length], self._held[length:]
        return released
