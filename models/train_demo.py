"""Trains the demo model: a small Gemma that writes Python, and the tokenizer it reads with.

The corpus is the standard library of the Python that runs this file, so nothing is downloaded.
Whole files are held out, chosen by a hash of their path. The learning rate follows the share of
the time budget that is spent, not a step count: a run ends cooled down on a slow machine as on a
fast one. The seed fixes the first weights and the order of the data; how many steps fit into the
budget is the machine's doing, so two runs agree in quality and not bit for bit.

    python models/train_demo.py --minutes 40            # trains, then writes models/demo
    python models/train_demo.py --minutes 40 --resume   # goes on after an interruption

It knows nothing of how the model is served.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer
from torch import Tensor, nn
from transformers import GemmaConfig, GemmaForCausalLM, PreTrainedTokenizerFast

VOCAB_SIZE = 2048
PAD, BOS, EOS = 0, 1, 2
SPECIALS = ("<pad>", "<bos>", "<eos>")

#: Tokens in one optimiser step, whatever the length of the windows they are cut into.
STEP_TOKENS = 4096
#: Windows are short, and cheap, until this share of the budget; long afterwards, so that the
#: model has seen every position it can be asked for.
SHORT_WINDOW, LONG_WINDOW, LONG_FROM = 256, 1024, 0.85

#: Folders and files of the standard library that are tests, other programs or tables.
SKIPPED_FOLDERS = {
    "test", "tests", "idlelib", "lib2to3", "site-packages", "encodings", "__pycache__",
}  # fmt: skip
SKIPPED_FILES = {"html/entities.py"}

#: A line break takes the indentation after it along, so that a prompt that ends in indentation
#: ends on a whole token. Otherwise a word takes along the one space before it.
PRETOKENS = (
    r"[\r\n]\s*| ?[\p{L}\p{M}_]+| ?\p{N}{1,3}| ?[^\s\p{L}\p{M}\p{N}_]+|[^\S\r\n]+(?!\S)|\s+"
)


# --- corpus ---------------------------------------------------------------------------------


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


# --- tokenizer ------------------------------------------------------------------------------


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
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        padding_side="left",
        model_max_length=LONG_WINDOW,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)


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
    lengths = [len(tokenizer.id_to_token(i)) for i in range(VOCAB_SIZE)]
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


# --- model ----------------------------------------------------------------------------------


def demo_config() -> GemmaConfig:
    """Eight layers, so that it can be cut into two, four or eight stages; 5.8 M parameters."""
    return GemmaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=64,
        max_position_embeddings=LONG_WINDOW,
        tie_word_embeddings=True,
        initializer_range=0.02,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )


def token_losses(model: nn.Module, windows: Tensor) -> Tensor:
    """Predict every token of each window but the first.

    Args:
        windows: int64 of shape (batch, length + 1).

    Returns:
        Losses in nats, of shape (batch, length).
    """
    logits = model(windows[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.transpose(1, 2), windows[:, 1:], reduction="none")


def with_bos(windows: Tensor) -> Tensor:
    """Put ``<bos>`` before each window, as a served prompt has it."""
    return F.pad(windows, (1, 0), value=BOS)


class HeldOutLoss(NamedTuple):
    """How well a model predicts text it has not seen."""

    nats_per_token: float
    bits_per_byte: float


@torch.inference_mode()
def evaluate(
    model: nn.Module, tokenizer: Tokenizer, stream: Tensor, *, max_windows: int | None = None
) -> HeldOutLoss:
    """Measure the loss over consecutive windows of 512 tokens, spread evenly over the stream."""
    length = 512
    windows = stream[: len(stream) // length * length].view(-1, length)
    windows = windows[:: math.ceil(len(windows) / (max_windows or len(windows)))]
    training, _ = model.training, model.eval()
    nats = sum(token_losses(model, with_bos(part)).sum().item() for part in windows.split(8))
    model.train(training)
    num_bytes = int(token_bytes(tokenizer)[windows].sum())
    return HeldOutLoss(nats / windows.numel(), nats / math.log(2) / num_bytes)


# --- optimiser ------------------------------------------------------------------------------


def orthogonalise(matrices: Tensor) -> Tensor:
    """Bring all singular values near 1 by a quintic Newton-Schulz iteration.

    Args:
        matrices: shape (count, rows, columns).
    """
    tall = matrices.size(1) > matrices.size(2)
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised, for matrices. All matrices of a group have the same shape.

    ``torch.optim.Muon`` does the same in bfloat16, one matrix at a time, which is many times
    slower on a CPU without bfloat16 arithmetic.
    """

    def __init__(self, groups: list[dict[str, Any]], momentum: float = 0.95) -> None:
        super().__init__(groups, {"lr": 0.0, "momentum": momentum, "weight_decay": 0.1})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure here
        for group in self.param_groups:
            params, momentum = group["params"], group["momentum"]
            gradient = torch.stack([p.grad for p in params])
            state = self.state[params[0]]
            average = state.setdefault("average", torch.zeros_like(gradient))
            average.lerp_(gradient, 1 - momentum)
            update = orthogonalise(gradient.lerp(average, momentum))
            scale = max(1.0, gradient.size(1) / gradient.size(2)) ** 0.5
            for param, change in zip(params, update, strict=True):
                param.mul_(1 - group["lr"] * group["weight_decay"])
                param.add_(change, alpha=-group["lr"] * scale)


def build_optimisers(model: nn.Module) -> tuple[Muon, torch.optim.AdamW]:
    """Muon for the matrices of the layers, AdamW for the embeddings and norms."""
    shapes: dict[torch.Size, list[nn.Parameter]] = {}
    others = []
    for name, param in model.named_parameters():
        if param.ndim == 2 and "embed" not in name:
            shapes.setdefault(param.shape, []).append(param)
        else:
            others.append(param)
    muon = Muon([{"params": params, "peak_lr": 0.02} for params in shapes.values()])
    adamw = torch.optim.AdamW(
        [{"params": others, "peak_lr": 3e-3}], betas=(0.9, 0.95), weight_decay=0.0
    )
    return muon, adamw


def learning_rate_factor(progress: float) -> float:
    """Warm up over the first 2 % of the budget, then follow a cosine down to 2 % of the peak."""
    if progress < 0.02:
        return max(progress / 0.02, 0.02)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


# --- training -------------------------------------------------------------------------------


def random_windows(stream: Tensor, length: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield batches of shape (STEP_TOKENS // length, length) for ever, epoch after epoch.

    Each epoch cuts the stream at another offset and shuffles the pieces.
    """
    batch = STEP_TOKENS // length
    while True:
        offset = int(torch.randint(length, (), generator=generator))
        cut = stream[offset:]
        windows = cut[: len(cut) // length * length].view(-1, length)
        order = torch.randperm(len(windows), generator=generator)
        for chosen in order.split(batch)[:-1]:
            yield windows[chosen]


def split_some_spaces(
    stream: Tensor, splits: Tensor, share: float, generator: torch.Generator
) -> Tensor:
    """Cut the leading whitespace off some tokens.

    Prompts end where their writer stopped, often after a space that the tokenizer would have
    joined to the next word. Without examples of that the model answers with noise.
    """
    chosen = (torch.rand(len(stream), generator=generator) < share) & (splits[stream, 0] >= 0)
    longer = stream.repeat_interleave(1 + chosen.long())
    first = (torch.arange(len(stream)) + chosen.cumsum(0) - chosen.long())[chosen]
    longer[first], longer[first + 1] = splits[stream[chosen]].unbind(1)
    return longer


@dataclass(slots=True)
class Trainer:
    """One run, which can be saved at any step and gone on with later."""

    model: GemmaForCausalLM
    stream: Tensor
    budget_s: float
    generator: torch.Generator
    optimisers: tuple[Muon, torch.optim.AdamW]
    #: Seconds trained so far, earlier runs included; evaluating and saving do not count.
    elapsed_s: float = 0.0
    num_steps: int = 0
    #: Running mean of the loss over about fifty steps, in nats per token.
    loss: float = math.log(VOCAB_SIZE)

    @property
    def progress(self) -> float:
        """The share of the budget that is spent."""
        return self.elapsed_s / self.budget_s

    def train_until(self, progress: float, length: int) -> None:
        """Train on windows of ``length`` tokens until that share of the budget is spent."""
        batches = random_windows(self.stream, length, self.generator)
        while self.progress < progress:
            started_at = time.monotonic()
            self._step(with_bos(next(batches)))
            self.elapsed_s += time.monotonic() - started_at

    def _step(self, windows: Tensor) -> None:
        factor = learning_rate_factor(self.progress)
        loss = token_losses(self.model, windows).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["peak_lr"] * factor
            optimiser.step()
            optimiser.zero_grad()
        self.num_steps += 1
        self.loss += 0.02 * (loss.item() - self.loss)

    def save(self, path: Path) -> None:
        """Replace the checkpoint at once, so that an interruption leaves the earlier one."""
        state = {
            "model": self.model.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "generator": self.generator.get_state(),
            "elapsed_s": self.elapsed_s,
            "num_steps": self.num_steps,
            "loss": self.loss,
        }
        torch.save(state, path.with_suffix(".new"))
        os.replace(path.with_suffix(".new"), path)

    def load(self, path: Path) -> None:
        """Go on where the run that wrote the checkpoint was."""
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.generator.set_state(state["generator"])
        self.elapsed_s, self.num_steps = state["elapsed_s"], state["num_steps"]
        self.loss = state["loss"]


def save_model(model: GemmaForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Write configuration, bfloat16 weights and tokenizer; ``model`` keeps its precision."""
    half = GemmaForCausalLM(model.config)
    half.load_state_dict(model.state_dict())
    half.to(torch.bfloat16).save_pretrained(folder)
    save_tokenizer(tokenizer, folder)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the demo model.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "demo")
    parser.add_argument("--minutes", type=float, default=40.0, help="time to train")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--checkpoint", type=Path, default=Path(tempfile.gettempdir()) / "train_demo.pt"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    generator = torch.Generator().manual_seed(arguments.seed)
    corpus = read_corpus()
    tokenizer = train_tokenizer(corpus.train)
    held_out = encode_documents(tokenizer, corpus.held_out)
    stream = encode_documents(tokenizer, corpus.train)
    stream = split_some_spaces(stream, whitespace_splits(tokenizer), 0.05, generator)
    model = GemmaForCausalLM(demo_config())
    budget_s = arguments.minutes * 60
    trainer = Trainer(model, stream, budget_s, generator, build_optimisers(model))
    if arguments.resume:
        trainer.load(arguments.checkpoint)
    print(f"{model.num_parameters()} parameters, {len(stream)} tokens to train on", flush=True)
    stops = max(int(arguments.minutes / 2), 4)
    for stop in range(1, stops + 1):
        length = SHORT_WINDOW if stop / stops <= LONG_FROM else LONG_WINDOW
        trainer.train_until(stop / stops, length)
        trainer.save(arguments.checkpoint)
        loss = evaluate(model, tokenizer, held_out, max_windows=None if stop == stops else 32)
        print(
            f"{trainer.elapsed_s / 60:5.1f} min, step {trainer.num_steps}: "
            f"train {trainer.loss:.3f}, held-out {loss.nats_per_token:.3f} nats per token, "
            f"{loss.bits_per_byte:.3f} bits per byte",
            flush=True,
        )
    save_model(model, tokenizer, arguments.out)


if __name__ == "__main__":
    main()
