"""What requests ask of an answer beyond its length reaches the stage that draws, and comes back."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from handlers.wire import Failure, Finish
from tests.integration.replica import Replica, Result

#: Stages take seconds to import their libraries, and a minute on a machine with no idle core.
pytestmark = pytest.mark.timeout(150)
PROMPT = "def read(self"
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"size": {"type": "integer", "maximum": 99}, "is_open": {"type": "boolean"}},
        "required": ["size", "is_open"],
        "additionalProperties": False,
    }
)
SHAPED: dict[str, Any] = {
    "prompt": PROMPT,
    "temperature": 1.0,
    "top_k": 200,
    "top_p": 0.95,
    "min_p": 0.001,
    "seed": 5,
    "repetition_penalty": 1.2,
    "frequency_penalty": 0.5,
    "logit_bias": ((7, 1.0),),
    "logprobs": 2,
    "ignore_eos": True,
    "max_new_tokens": 20,
}


@pytest.fixture(scope="module")
def replica(demo_folder: Path) -> Iterator[Replica]:
    replica = Replica(demo_folder, 2)
    yield replica
    replica.close()


@pytest.fixture(scope="module")
def whole(replica: Replica) -> Result:
    """Three answers to one prompt, undisturbed."""
    return replica.generate(**SHAPED, n=3)


def logprobs(result: Result, index: int) -> list[float]:
    """Those of an answer's tokens; in other company a model's logits differ in their last bits."""
    chunks = (chunk.logprobs for chunk in result.chunks if chunk.index == index)
    return [each.logprob for each in itertools.chain.from_iterable(chunks)]


def test_a_request_for_three_answers_gets_three_different_ones(whole: Result) -> None:
    answers = [tuple(whole.tokens_of(index)) for index in range(3)]

    assert [len(answer) for answer in answers] == [20] * 3
    assert len(set(answers)) == 3
    assert isinstance(whole.end, Finish)
    assert whole.end.reasons == ("length",) * 3
    assert whole.end.num_output_tokens == 60


def test_the_first_of_several_answers_is_the_one_that_comes_alone(
    replica: Replica, whole: Result
) -> None:
    alone = replica.generate(**SHAPED)

    assert alone.token_ids == whole.tokens_of(0)
    assert logprobs(alone, 0) == pytest.approx(logprobs(whole, 0), abs=1e-4)


def test_log_probabilities_are_those_of_the_whole_model(whole: Result, demo_folder: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(demo_folder, dtype=torch.float32)
    prompt = transformers.AutoTokenizer.from_pretrained(demo_folder)(PROMPT)["input_ids"]
    said = whole.tokens_of(1)
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + said])).logits[0, len(prompt) - 1 : -1]

    wanted = logits.log_softmax(-1)
    of_said = wanted.gather(1, torch.tensor(said)[:, None])[:, 0].tolist()
    assert logprobs(whole, 1) == pytest.approx(of_said, abs=1e-3)
    tops = [each.top for chunk in whole.chunks if chunk.index == 1 for each in chunk.logprobs]
    assert [[token for token, _ in top] for top in tops] == wanted.topk(2).indices.tolist()


def test_answers_go_on_the_same_from_where_an_earlier_attempt_stood(
    replica: Replica, whole: Result
) -> None:
    said = [whole.tokens_of(index) for index in range(3)]
    others = (tuple(said[1][:1]), tuple(said[2]))

    resumed = replica.generate(**SHAPED, n=3, generated=tuple(said[0][:11]), other_generated=others)

    assert [resumed.tokens_of(index) for index in range(3)] == [said[0][11:], said[1][1:], []]
    assert logprobs(resumed, 0) == pytest.approx(logprobs(whole, 0)[11:], abs=1e-4)
    assert resumed.end == whole.end


def test_a_constrained_answer_matches_its_schema_and_ends(replica: Replica) -> None:
    result = replica.generate(
        prompt=PROMPT, json_schema=SCHEMA, temperature=1.5, seed=1, max_new_tokens=100
    )

    assert result.reason == "eos"
    document = json.loads(result.text)
    assert set(document) == {"size", "is_open"}
    assert document["size"] <= 99


def test_a_schema_that_cannot_be_followed_is_refused(replica: Replica) -> None:
    end = replica.generate(prompt=PROMPT, json_schema='{"type": "thing"}').end

    assert isinstance(end, Failure)
    assert (end.status, end.field) == (422, "json_schema")
