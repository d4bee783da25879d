"""Clients written for TorchServe, and clients that get everything wrong."""

from __future__ import annotations

import json
from typing import Any

import grpc
import pytest
import requests

from scheduler.rpc import inference_pb2 as pb
from scheduler.rpc.inference_pb2_grpc import InferenceAPIsServiceStub
from tests.acceptance.conftest import Reference
from tests.acceptance.system import System

pytestmark = [pytest.mark.torchserve, pytest.mark.timeout(300)]


def test_the_grpc_client_of_torchserve_predicts(system: System, reference: Reference) -> None:
    request = pb.PredictionsRequest(model_name="demo", input={"data": b"import re\n"})
    with grpc.insecure_channel(system.grpc_address) as channel:
        answer = InferenceAPIsServiceStub(channel).Predictions(request, timeout=60)

    assert answer.prediction.decode() == reference.text("import re\n", 64)


def test_the_grpc_client_of_torchserve_streams(system: System, reference: Reference) -> None:
    body = json.dumps({"prompt": "import re\n", "max_new_tokens": 20}).encode()
    request = pb.PredictionsRequest(model_name="demo", input={"data": body})
    with grpc.insecure_channel(system.grpc_address) as channel:
        answers = InferenceAPIsServiceStub(channel).StreamPredictions(request, timeout=60)
        lines = [json.loads(answer.prediction) for answer in answers]

    tokens = [token for line in lines for token in line.get("token_ids", ())]
    assert tokens == reference.tokens("import re\n", 20)


def test_a_text_body_gets_text_back(system: System, reference: Reference) -> None:
    answer = requests.post(
        f"{system.address}/predictions/demo/1.0",
        data=b"import re\n",
        headers={"content-type": "text/plain"},
        timeout=60,
    )

    assert answer.text == reference.text("import re\n", 64)
    assert answer.headers["content-type"].startswith("text/plain")


JSON = {"content-type": "application/json"}
FIELDS: list[dict[str, Any]] = [
    {"prompt": value} for value in (None, 1, 1.5, True, [], ["x"], {}, "", "\ud800")
] + [
    {"prompt": "x", name: value}
    for name, values in {
        "max_new_tokens": (0, -1, 1.5, "9", None, True, 10**9),
        "temperature": (-1, "hot", None, 11, [0]),
        "top_k": (-1, 0.5, "all"),
        "top_p": (0, -0.1, 1.1, "1"),
        "seed": (-1, 2**63, "lucky", 0.5),
        "stop": ([""], 5, [1], ["x"] * 17, "y" * 257, {"a": "b"}),
        "ignore_eos": (1, "yes", None),
        "stream": (1, "true"),
        "generated": ([1], "x"),
        "max_tokens": (5,),
        "Prompt": ("x",),
    }.items()
    for value in values
]
BODIES: list[tuple[str, bytes]] = [
    (f"field {json.dumps(body)[:60]}", json.dumps(body).encode()) for body in FIELDS
] + [
    ("no body", b""),
    ("not UTF-8", b'{"prompt": "\xff\xfe"}'),
    ("not JSON", b"{prompt: x}"),
    ("cut off", b'{"prompt": "x"'),
    ("a list", b'["x"]'),
    ("NaN", b'{"prompt": "x", "temperature": NaN}'),
    ("deep", b"[" * 50_000),
    ("prompt and tokens", b'{"prompt": "x", "prompt_token_ids": [1]}'),
    ("a token of another model", b'{"prompt_token_ids": [99999999]}'),
    ("a prompt that is too long", json.dumps({"prompt": "x = 1\n" * 20_000}).encode()),
]


def test_malformed_requests_are_refused_with_reasons_and_disturb_nobody(
    system: System, reference: Reference
) -> None:
    assert len(BODIES) >= 50
    neighbour = system.submit("demo", prompt="import re\n", max_new_tokens=400, ignore_eos=True)

    for what, body in BODIES:
        answer = requests.post(
            f"{system.address}/predictions/demo", data=body, headers=JSON, timeout=10
        )
        assert 400 <= answer.status_code < 500, (what, answer.text)
        assert answer.json()["message"], what

    final = system.wait(neighbour)
    expected = reference.tokens("import re\n", 400, ignore_eos=True)
    assert final["output"]["token_ids"] == expected
    assert len(final["attempts"]) == 1
