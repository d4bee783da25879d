"""Trains the demo model: a small Gemma that writes Python, and the tokenizer it reads with.

The corpus is the standard library of the Python that runs this file, so nothing is downloaded.
Whole files are held out, chosen by a hash of their path. The learning rate follows the share of
the time budget that is spent, not a step count: a run ends cooled down on a slow machine as on a
fast one. The seed fixes the first weights and the order of the data; how many steps fit into the
budget is the machine's doing, so two runs agree in quality and not bit for bit.

    python models/train_demo.py --minutes 40            # trains, then writes models/demo
    python models/train_demo.py --minutes 40 --resume   # goes on after an interruption
    python models/train_demo.py --minutes 40 --from-weights models/demo   # a further run

It knows nothing of how the model is served.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from demo_text import (
    BOS,
    EOS,
    MAX_LENGTH,
    PAD,
    VOCAB_SIZE,
    encode_documents,
    read_corpus,
    save_tokenizer,
    token_bytes,
    train_tokenizer,
    whitespace_splits,
)
from muon import Muon
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from transformers import GemmaConfig, GemmaForCausalLM

#: Tokens in one optimiser step, whatever the length of the windows they are cut into.
STEP_TOKENS = 2048
SHORT_WINDOW, MIDDLE_WINDOW, LONG_WINDOW = 256, 512, MAX_LENGTH
#: Seconds of training between two checkpoints.
CHECKPOINT_S = 120.0


class Phase(NamedTuple):
    """What is trained until a share of the budget is spent."""

    until: float
    #: Layers that run. The others wait: they add nothing yet, so joining disturbs nothing.
    num_layers: int
    #: Tokens in one example.
    window: int


class Recipe(NamedTuple):
    """What a run trains when, and how fast."""

    phases: tuple[Phase, ...]
    #: The highest learning rate of the layers' matrices, and of the embeddings and norms.
    muon_lr: float
    adamw_lr: float
    #: The share of those rates that is left at the end.
    last_factor: float


#: A few layers learn most of what a short run can learn, at a third of the price. Windows are
#: long at the end, so that the model has seen every position it can be asked for.
FIRST_RUN = Recipe(
    phases=(
        Phase(0.6, 2, SHORT_WINDOW),
        Phase(0.85, 4, SHORT_WINDOW),
        Phase(0.94, 8, SHORT_WINDOW),
        Phase(1.0, 8, LONG_WINDOW),
    ),
    muon_lr=0.03,
    adamw_lr=8e-3,
    last_factor=0.02,
)

#: All layers from the start. A step of Muon is as long for every matrix, so the layers that
#: joined last and are still small change most; the embeddings, which have settled, move slowly.
FURTHER_RUN = Recipe(
    phases=(
        Phase(0.5, 8, SHORT_WINDOW),
        Phase(0.9, 8, MIDDLE_WINDOW),
        Phase(1.0, 8, LONG_WINDOW),
    ),
    muon_lr=0.02,
    adamw_lr=3e-3,
    last_factor=0.0,
)


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
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        initializer_range=0.02,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )


def build_model() -> GemmaForCausalLM:
    """Build a model whose layers begin by adding nothing, which makes the first steps count."""
    model = GemmaForCausalLM(demo_config())
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            nn.init.zeros_(parameter)
    return model


def load_model(folder: Path) -> GemmaForCausalLM:
    """Build the model with the weights of an earlier run, in float32."""
    model = build_model()
    saved = GemmaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.load_state_dict(saved.state_dict())
    return model


def token_losses(model: nn.Module, windows: Tensor) -> Tensor:
    """Predict every token of each window but the first.

    Args:
        windows: int64 of shape (batch, length + 1).

    Returns:
        Losses in nats, of shape (batch, length).
    """
    logits = model(windows[:, :-1], use_cache=False).logits.flatten(0, 1)
    losses = functional.cross_entropy(logits, windows[:, 1:].flatten(), reduction="none")
    return losses.view(len(windows), -1)


def with_bos(windows: Tensor) -> Tensor:
    """Put ``<bos>`` before each window, as a served prompt has it."""
    return functional.pad(windows, (1, 0), value=BOS)


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
    nats = 0.0
    for first in range(0, len(windows), 8):
        nats += token_losses(model, with_bos(windows[first : first + 8])).sum().item()
    model.train(training)
    num_bytes = int(token_bytes(tokenizer)[windows].sum())
    return HeldOutLoss(nats / windows.numel(), nats / math.log(2) / num_bytes)


# --- optimiser ------------------------------------------------------------------------------


def build_optimisers(model: nn.Module, recipe: Recipe) -> tuple[Muon, torch.optim.AdamW]:
    """Muon for the matrices of the layers, AdamW for the embeddings and norms."""
    shapes: dict[torch.Size, list[nn.Parameter]] = {}
    others = []
    for name, param in model.named_parameters():
        if param.ndim == 2 and "embed" not in name:
            shapes.setdefault(param.shape, []).append(param)
        else:
            others.append(param)
    muon = Muon([{"params": params, "peak_lr": recipe.muon_lr} for params in shapes.values()])
    adamw = torch.optim.AdamW(
        [{"params": others, "peak_lr": recipe.adamw_lr}], betas=(0.9, 0.95), weight_decay=0.0
    )
    return muon, adamw


def learning_rate_factor(progress: float, last: float) -> float:
    """Warm up over the first 2 % of the budget, then follow a cosine down to ``last``."""
    if progress < 0.02:
        return max(progress / 0.02, 0.02)
    return last + (1 - last) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


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
        for first in range(0, len(windows) - batch + 1, batch):
            yield windows[order[first : first + batch]]


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
    recipe: Recipe
    budget_s: float
    generator: torch.Generator
    optimisers: tuple[Muon, torch.optim.AdamW]
    #: Seconds trained so far, earlier runs included; evaluating and saving do not count.
    elapsed_s: float = 0.0
    num_steps: int = 0
    #: Running mean of the loss over about a hundred steps, in nats per token, some spaces split.
    loss: float = math.log(VOCAB_SIZE)

    @property
    def progress(self) -> float:
        """The share of the budget that is spent."""
        return self.elapsed_s / self.budget_s

    def train_until(self, progress: float) -> None:
        """Train until that share of the budget is spent."""
        while self.progress < progress:
            phase = next(phase for phase in self.recipe.phases if self.progress < phase.until)
            self._train_phase(phase, min(progress, phase.until))

    def _train_phase(self, phase: Phase, progress: float) -> None:
        # The model runs as many of its layers as its configuration says.
        self.model.config.num_hidden_layers = phase.num_layers
        batches = random_windows(self.stream, phase.window, self.generator)
        while self.progress < progress:
            started_at = time.monotonic()
            self._step(with_bos(next(batches)))
            self.elapsed_s += time.monotonic() - started_at

    def _step(self, windows: Tensor) -> None:
        factor = learning_rate_factor(self.progress, self.recipe.last_factor)
        loss = token_losses(self.model, windows).mean()
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no types here
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["peak_lr"] * factor
            optimiser.step()
            optimiser.zero_grad()
        self.num_steps += 1
        self.loss += 0.01 * (loss.item() - self.loss)

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
    half.bfloat16().save_pretrained(folder)
    save_tokenizer(tokenizer, folder)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the demo model.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "demo")
    parser.add_argument("--minutes", type=float, default=40.0, help="time to train")
    parser.add_argument(
        "--threads", type=int, default=1, help="at most; fewer while other work needs the cores"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--checkpoint", type=Path, default=Path(tempfile.gettempdir()) / "train_demo.pt"
    )
    parser.add_argument(
        "--from-weights", type=Path, help="folder of a trained model to train further, whole"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    return parser.parse_args()


def threads_to_use(most: int) -> int:
    """Leave other work the cores it kept busy in the last minute; this run was busy as well."""
    others = max(os.getloadavg()[0] - torch.get_num_threads(), 0.0)
    idle = (os.cpu_count() or 1) - others
    return max(1, min(most, round(idle)))


def report(trainer: Trainer, loss: HeldOutLoss) -> None:
    """Print one line about the run so far."""
    print(
        f"{trainer.elapsed_s / 60:5.1f} min, step {trainer.num_steps}: "
        f"train {trainer.loss:.3f}, held-out {loss.nats_per_token:.3f} nats per token, "
        f"{loss.bits_per_byte:.3f} bits per byte",
        flush=True,
    )


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    generator = torch.Generator().manual_seed(arguments.seed)

    corpus, earlier = read_corpus(), arguments.from_weights
    if earlier:
        recipe, model = FURTHER_RUN, load_model(earlier)
        tokenizer = Tokenizer.from_file(str(earlier / "tokenizer.json"))
    else:
        recipe, model = FIRST_RUN, build_model()
        tokenizer = train_tokenizer(corpus.train)
    held_out = encode_documents(tokenizer, corpus.held_out)
    stream = encode_documents(tokenizer, corpus.train)
    stream = split_some_spaces(stream, whitespace_splits(tokenizer), 0.05, generator)

    budget_s, optimisers = arguments.minutes * 60, build_optimisers(model, recipe)
    trainer = Trainer(model, stream, recipe, budget_s, generator, optimisers)
    if arguments.resume:
        trainer.load(arguments.checkpoint)
    print(f"{model.num_parameters()} parameters, {len(stream)} tokens to train on", flush=True)
    while trainer.progress < 1.0:
        trainer.train_until(min(trainer.progress + CHECKPOINT_S / budget_s, 1.0))
        trainer.save(arguments.checkpoint)
        report(trainer, evaluate(model, tokenizer, held_out, max_windows=16))
        torch.set_num_threads(threads_to_use(arguments.threads))
    save_model(model, tokenizer, arguments.out)
    report(trainer, evaluate(model, tokenizer, held_out))


if __name__ == "__main__":
    main()
