"""The demo model's text: what it is trained on, and how that becomes tokens.

The corpus is the standard library of the Python that runs this file. Whole files are held out,
chosen by a hash of their path, so that the same ones are held out on every machine.
"""

from __future__ import annotations

import hashlib
import sysconfig
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer
from torch import Tensor
from transformers import PreTrainedTokenizerFast

VOCAB_SIZE = 2048
PAD, BOS, EOS = 0, 1, 2
SPECIALS = ("<pad>", "<bos>", "<eos>")
#: The longest text the model is asked to read, in tokens.
MAX_LENGTH = 1024

#: Folders and files of the standard library that are tests, other programs or tables.
SKIPPED_FOLDERS = {
    "test", "tests", "idlelib", "lib2to3", "site-packages", "encodings", "__pycache__",
}  # fmt: skip
SKIPPED_FILES = {"html/entities.py"}

#: A line break takes the indentation after it along, so that a prompt that ends in indentation
#: ends on a whole token. Otherwise a word takes along the one space before it.
PRETOKENS = r"[\r\n]\s*| ?[\p{L}\p{M}_]+| ?\p{N}{1,3}| ?[^\s\p{L}\p{M}\p{N}_]+|[^\S\r\n]+(?!\S)|\s+"


class Corpus(NamedTuple):
    """Texts of whole files."""

    train: list[str]
    held_out: list[str]


def read_corpus() -> Corpus:
    """Read the standard library; one file in twenty, by the hash of its path, is held out."""
    root = Path(sysconfig.get_path("stdlib"))
    corpus = Corpus([], [])
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if SKIPPED_FOLDERS.intersection(name.split("/")) or name in SKIPPED_FILES:
            continue
        digest = hashlib.sha256(name.encode()).digest()
        part = corpus.held_out if digest[0] % 20 == 0 else corpus.train
        part.append(path.read_text(encoding="utf-8", errors="replace"))
    return corpus


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Learn a byte-level BPE: any text comes back from its tokens as it was."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[AddedToken(token, special=True) for token in SPECIALS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", BOS)]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the files that both ``tokenizers`` and ``AutoTokenizer`` load."""
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # upstream
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        padding_side="left",
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(folder)


def encode_documents(tokenizer: Tokenizer, texts: list[str]) -> Tensor:
    """Join documents with ``<eos>``.

    Returns:
        int64 of shape (tokens,), without any ``<bos>``.
    """
    ids: list[int] = []
    for encoding in tokenizer.encode_batch(texts, add_special_tokens=False):
        ids += [*encoding.ids, EOS]
    return torch.tensor(ids)


def token_bytes(tokenizer: Tokenizer) -> Tensor:
    """Count the bytes of text each token stands for; a special token stands for none.

    Returns:
        int64 of shape (VOCAB_SIZE,).
    """
    # A byte-level token is spelt with one character per byte.
    lengths = [len(tokenizer.id_to_token(i) or "") for i in range(VOCAB_SIZE)]
    return torch.tensor([0] * len(SPECIALS) + lengths[len(SPECIALS) :])


def whitespace_splits(tokenizer: Tokenizer) -> Tensor:
    """For each token that begins with a space or line break: the token of what follows it.

    Returns:
        int64 of shape (VOCAB_SIZE, 2): the two halves, or (-1, -1) for a token that stays whole.
    """
    splits = torch.full((VOCAB_SIZE, 2), -1)
    for token, index in tokenizer.get_vocab().items():
        rest = tokenizer.token_to_id(token[1:]) if token[0] in "ĠĊ" and len(token) > 1 else None
        if rest is not None:
            splits[index] = torch.tensor([tokenizer.token_to_id(token[0]), rest])
    return splits
