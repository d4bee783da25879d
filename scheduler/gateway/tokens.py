"""Counts a prompt's tokens before the task is accepted, where that is possible.

With the model's ``tokenizer.json`` at hand the count is exact, and a prompt that cannot fit is
refused at the door. Without it the number of UTF-8 bytes stands in as an upper bound: good enough
to share fairly, never a reason to refuse, because only the handler then knows the real length.
It never fetches anything: a model whose files are not on this machine is counted in bytes.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tokenizers import Tokenizer

from handlers.model_config import ModelConfig, Source
from scheduler.errors import StartupError

TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True, slots=True)
class Count:
    """How long some texts are, in tokens."""

    #: One number a text, in their order; special tokens included.
    num_tokens: tuple[int, ...]
    #: Whether the numbers are tokens, and not the bytes that bound them from above.
    is_exact: bool


class Counter(Protocol):
    """Counts texts for one model."""

    #: Token ids are below this; None: not known here.
    vocabulary_size: int | None

    def count(self, texts: Sequence[str]) -> Count:
        """The length of each text; slow for long texts, so callers use a thread."""
        ...


class TokenizerCounter:
    """Counts with the model's own tokenizer."""

    def __init__(self, tokenizer: Tokenizer, vocabulary_size: int) -> None:
        # A tokenizer file may carry the cutting and padding of the model's training.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.vocabulary_size: int | None = vocabulary_size

    def count(self, texts: Sequence[str]) -> Count:
        return Count(tuple(len(self._tokenizer.encode(text).ids) for text in texts), True)


class ByteCounter:
    """Counts bytes, for a model whose tokenizer is not on this machine."""

    def __init__(self) -> None:
        self.vocabulary_size: int | None = None

    def count(self, texts: Sequence[str]) -> Count:
        return Count(tuple(len(text.encode("utf-8")) for text in texts), False)


def open_counter(config: ModelConfig) -> Counter:
    """The best counter this machine has for a model.

    Raises:
        StartupError: a tokenizer is there and cannot be read.
    """
    path = find_file(config.source, TOKENIZER_FILE)
    if path is None:
        return ByteCounter()
    try:
        tokenizer = Tokenizer.from_file(str(path))
        return TokenizerCounter(tokenizer, _vocabulary_size(path.parent, tokenizer))
    except Exception as error:  # The library raises nothing more special.
        raise StartupError(f"{path} cannot be used to count tokens: {error}") from error


def open_counters(models: Mapping[str, ModelConfig]) -> dict[str, Counter]:
    """A counter for each model."""
    return {name: open_counter(config) for name, config in models.items()}


def find_file(source: Source, name: str) -> Path | None:
    """A file of a model's source on this machine, or None when it is not here."""
    match source.kind:
        case "folder":
            path = Path(source.location) / name
        case "package":
            spec = importlib.util.find_spec(source.location)
            roots = list(spec.submodule_search_locations or []) if spec else []
            if not roots:
                return None
            path = Path(roots[0]) / source.subfolder / name
        case "hub":
            return _find_in_hub_cache(source, name)
        case _:
            return None
    return path if path.is_file() else None


def _find_in_hub_cache(source: Source, name: str) -> Path | None:
    # Slow to import, and only models from the hub need it; it comes with tokenizers.
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(source.location, name, revision=source.revision)
    return Path(found) if isinstance(found, str) else None


def _vocabulary_size(folder: Path, tokenizer: Tokenizer) -> int:
    """Rows of the model's embedding; its tokenizer may name fewer tokens."""
    config = folder / "config.json"
    if config.is_file():
        size = json.loads(config.read_text(encoding="utf-8")).get("vocab_size")
        if isinstance(size, int):
            return size
    return int(tokenizer.get_vocab_size(with_added_tokens=True))
