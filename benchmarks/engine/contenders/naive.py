"""The naive distributed way: a gRPC call per layer per token, and no cache.

Servers hold the layers. For every token the client embeds the whole text so far, sends the hidden
states through the layers one call at a time, packed by ``torch.save`` and unpacked by
``torch.load``, and draws from the logits of the last position. Rows are padded on the right,
where causal attention never looks. The client computes no more logits than it needs and the
connections stay open; nothing is made slow on purpose.

    python -m benchmarks.engine.contenders.naive SETTINGS STAGE     # a server; prints its port
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import grpc
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks.engine.contenders import base
from benchmarks.engine.contenders.base import Job, Run, Settings, num_tokens_of
from handlers.pipeline.process import die_with_parent

METHOD = "/naive.Layers/Forward"
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class Contender(base.Contender):
    def __init__(self, settings: Settings) -> None:
        model = _load(settings)
        self._embeddings, self._norm = model.model.embed_tokens, model.model.norm
        self._head, num_layers = model.lm_head, model.config.num_hidden_layers
        self._servers = [_start(settings, stage) for stage in range(settings.num_stages)]
        calls = [_connect(server) for server in self._servers]
        self._layers = [
            calls[layer * settings.num_stages // num_layers] for layer in range(num_layers)
        ]

    @torch.inference_mode()
    def run(self, jobs: Sequence[Job]) -> Run:
        rows = [list(job.prompt) for job in jobs]
        moments: list[float] = []
        began = time.perf_counter()
        for _ in range(num_tokens_of(jobs)):
            for row, token in zip(rows, self._next(rows), strict=True):
                row.append(token)
            moments.append(time.perf_counter() - began)
        tokens = [row[len(job.prompt) :] for row, job in zip(rows, jobs, strict=True)]
        return Run(tokens, [moments] * len(jobs))

    def close(self) -> None:
        for server in self._servers:
            server.terminate()
            server.wait()

    def _next(self, rows: list[list[int]]) -> list[int]:
        longest = max(map(len, rows))
        token_ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        hidden = self._embeddings(token_ids)
        for layer, call in enumerate(self._layers):
            hidden = unpack(call(pack({"layer": layer, "hidden": hidden})))["hidden"]
        last = hidden[torch.arange(len(rows)), torch.tensor([len(row) - 1 for row in rows])]
        tokens: list[int] = self._head(self._norm(last)).argmax(-1).tolist()
        return tokens


class Server:
    """Runs any of its layers over whole texts."""

    def __init__(self, settings: Settings) -> None:
        self._model = _load(settings).model

    @torch.inference_mode()
    def forward(self, request: bytes, _: grpc.ServicerContext) -> bytes:
        given = unpack(request)
        hidden = given["hidden"]
        positions = torch.arange(hidden.shape[1])[None]
        angles = self._model.rotary_emb(hidden, positions)
        answer = self._model.layers[given["layer"]](hidden, position_embeddings=angles)
        return pack({"hidden": answer})


def pack(document: dict[str, Any]) -> bytes:
    stream = io.BytesIO()
    torch.save(document, stream)
    return stream.getvalue()


def unpack(data: bytes) -> dict[str, Any]:
    document: dict[str, Tensor | int] = torch.load(io.BytesIO(data), weights_only=True)
    return document


def _load(settings: Settings) -> Any:
    dtype = getattr(torch, settings.dtype)
    model: Any = AutoModelForCausalLM.from_pretrained(settings.model, dtype=dtype)
    return model.eval()


def _start(settings: Settings, stage: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", __name__, json.dumps(asdict(settings)), str(stage)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _connect(server: subprocess.Popen[str]) -> Any:
    assert server.stdout is not None
    port = int(server.stdout.readline())
    channel: Any = grpc.insecure_channel(f"127.0.0.1:{port}", OPTIONS)
    return channel.unary_unary(METHOD)


def main(settings: Settings) -> None:
    die_with_parent()
    handler = grpc.unary_unary_rpc_method_handler(Server(settings).forward)
    service, method = METHOD.strip("/").split("/")
    server = grpc.server(ThreadPoolExecutor(1), options=OPTIONS)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {method: handler}),)
    )
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    main(Settings(**json.loads(sys.argv[1])))
