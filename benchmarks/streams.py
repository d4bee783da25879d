"""Streams of the demo model through Plait, from TorchServe, and the whole model alone.

Start ``plait up`` first and let nothing else run; then ``python benchmarks/streams.py``. Each round
sends the same requests each way, in turn, so that what disturbs the machine disturbs all.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

TORCHSERVE = "TorchServe"
WHOLE_MODEL = "generate"


@dataclass(frozen=True)
class Way:
    """One way to the model."""

    name: str
    url: str
    headers: dict[str, str]
    more: dict[str, Any]


@dataclass(frozen=True)
class Run:
    tokens_per_s: float
    #: Median over the streams, in seconds; None for what does not stream.
    ttft_s: float | None


def through_plait(address: str) -> Way:
    return Way("Plait", f"{address}/predictions/demo", {}, {"stream": True})


def straight_to_torchserve(state: Path) -> Way:
    home = state / "torchserve"
    port = json.loads((home / "endpoints.json").read_text())["inference"]
    key = json.loads((home / "key_file.json").read_text())["inference"]["key"]
    headers = {"Authorization": f"Bearer {key}"}
    return Way(TORCHSERVE, f"http://127.0.0.1:{port}/predictions/demo__r0", headers, {})


def run(way: Way, num_streams: int, num_tokens: int) -> Run:
    """``num_streams`` requests at once, each for ``num_tokens`` tokens."""
    results: list[tuple[float, int]] = []

    def stream(index: int) -> None:
        began = time.perf_counter()
        first, count = 0.0, 0
        document = {
            "prompt": f"def f{index}(self):\n",
            "max_new_tokens": num_tokens,
            "ignore_eos": True,
            **way.more,
        }
        body = json.dumps(document).encode()
        headers = {"content-type": "application/json", **way.headers}
        with requests.post(way.url, data=body, headers=headers, stream=True, timeout=300) as answer:
            answer.raise_for_status()
            for line in answer.iter_lines(chunk_size=1):
                count += len(json.loads(line).get("token_ids", ())) if line else 0
                first = first or time.perf_counter() - began
        results.append((first, count))

    threads = [threading.Thread(target=stream, args=(index,)) for index in range(num_streams)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - began
    total = sum(count for _, count in results)
    assert total == num_streams * num_tokens, "some stream was cut short"
    return Run(total / took, statistics.median(first for first, _ in results))


def whole_model(folder: Path, num_streams: int, num_tokens: int) -> Run:
    """The limit: ``generate`` of transformers, unsplit, one thread, all prompts in one batch."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompts = [f"def f{index % 10}(self):\n" for index in range(num_streams)]
    encoded = AutoTokenizer.from_pretrained(folder)(prompts, return_tensors="pt")
    began = time.perf_counter()
    with torch.inference_mode():
        model.generate(
            **encoded, max_new_tokens=num_tokens, min_new_tokens=num_tokens, do_sample=False
        )
    return Run(num_streams * num_tokens / (time.perf_counter() - began), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--address", default="http://127.0.0.1:8700")
    parser.add_argument("--state", type=Path, default=Path(".plait"))
    parser.add_argument("--model", type=Path, default=Path("models/demo"))
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    ways = [through_plait(options.address), straight_to_torchserve(options.state)]
    print("| streams | way | tokens/s | TTFT (median) | of TorchServe's tokens/s |")
    print("|---|---|---|---|---|")
    for num_streams in (1, 4, 8, 16):
        runs: dict[str, list[Run]] = {way.name: [] for way in ways}
        for _ in range(options.rounds):
            for way in ways:
                runs[way.name].append(run(way, num_streams, options.tokens))
            whole = whole_model(options.model, num_streams, options.tokens)
            runs.setdefault(WHOLE_MODEL, []).append(whole)
        median = {n: statistics.median(r.tokens_per_s for r in each) for n, each in runs.items()}
        for name, each in runs.items():
            first = [r.ttft_s for r in each if r.ttft_s is not None]
            ttft = f"{statistics.median(first):.3f} s" if first else "-"
            ratio = median[name] / median[TORCHSERVE]
            print(f"| {num_streams} | {name} | {median[name]:.0f} | {ttft} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
