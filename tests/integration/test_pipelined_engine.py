"""The pipelined engine over real processes gives the tokens transformers' generate gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GemmaConfig

from handlers.engines.base import Place
from handlers.lifecycle import start_engine
from handlers.testing.random_model import write_random_model
from handlers.wire import Failure, Finish, GenerationRequest
from tests.integration.replica import Replica, model_config

#: Two ranks take seconds to import their libraries, and a minute on a machine with no idle core.
pytestmark = pytest.mark.timeout(150)
NUM_LAYERS, EOS = 6, 2
#: Longer and shorter than a prefill chunk, which is 16 tokens here.
PROMPTS = [
    "def ",
    "x",
    "import os\nclass Pool:\n    def __init__(self, size",
    "for index in range(10):\n    print(index)\n" * 3,
    "return {",
    "while not done:\n    done = step(state, 1, 2, 3, 4, 5, 6, 7, 8, 9)\n",
]
SAMPLED = {"temperature": 0.9, "top_p": 0.95, "seed": 7}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory, demo_folder: Path) -> Path:
    config = GemmaConfig(
        vocab_size=2048, hidden_size=64, intermediate_size=128, num_hidden_layers=NUM_LAYERS,
        num_attention_heads=4, num_key_value_heads=1, head_dim=16, max_position_embeddings=128,
        pad_token_id=0, bos_token_id=1, eos_token_id=EOS,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("model")
    return write_random_model(config, folder, seed=3, tokenizer_from=demo_folder)


@pytest.fixture(scope="module")
def replicas(model_folder: Path) -> Iterator[Callable[[int], Replica]]:
    """Replicas by their number of stages, each started once whatever the order of the tests."""
    started: dict[int, Replica] = {}

    def start(num_stages: int) -> Replica:
        if num_stages not in started:
            started[num_stages] = Replica(model_folder, num_stages)
        return started[num_stages]

    yield start
    for replica in started.values():
        replica.close()


@pytest.fixture(params=[1, 2, 4], ids=["1-stage", "2-stages", "4-stages"])
def replica(request: pytest.FixtureRequest, replicas: Callable[[int], Replica]) -> Replica:
    return replicas(request.param)


class Reference:
    """transformers' own generate, one prompt at a time in this process."""

    def __init__(self, folder: Path) -> None:
        # More threads than idle cores make each step many times slower.
        torch.set_num_threads(1)
        self._known: dict[tuple[str, int, int | None], list[int]] = {}
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def token_ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text)["input_ids"])

    def greedy(self, text: str, count: int, eos: int | None = EOS) -> list[int]:
        key = (text, count, eos)
        if key not in self._known:
            self._known[key] = self._generate(*key)
        return self._known[key]

    def _generate(self, text: str, count: int, eos: int | None) -> list[int]:
        prompt = self.token_ids(text)
        self.model.generation_config.eos_token_id = eos
        output = self.model.generate(torch.tensor([prompt]), max_new_tokens=count, do_sample=False)
        return list(output[0].tolist()[len(prompt) :])


@pytest.fixture(scope="module")
def reference(model_folder: Path) -> Reference:
    return Reference(model_folder)


def test_greedy_tokens_equal_generate(replica: Replica, reference: Reference) -> None:
    results = replica.generate_all([{"prompt": p, "max_new_tokens": 24} for p in PROMPTS])

    wanted = [reference.greedy(prompt, 24) for prompt in PROMPTS]
    assert [result.token_ids for result in results] == wanted
    assert len({token_id for tokens in wanted for token_id in tokens}) > 40  # proves something


def test_the_text_is_what_the_tokens_say(replica: Replica, reference: Reference) -> None:
    result = replica.generate(prompt=PROMPTS[2], max_new_tokens=24)

    whole = reference.tokenizer.decode(
        reference.token_ids(PROMPTS[2]) + result.token_ids, skip_special_tokens=True
    )
    assert whole == PROMPTS[2] + result.text


def test_requests_that_join_and_leave_disturb_nobody(
    replica: Replica, reference: Reference
) -> None:
    stays = replica.submit(prompt=PROMPTS[2], max_new_tokens=60, ignore_eos=True)
    leaves = [replica.submit(prompt=p, max_new_tokens=60, ignore_eos=True) for p in PROMPTS[:4]]
    replica.wait_for_tokens(stays, 10)
    for request_id in leaves:
        replica.cancel(request_id)
    joins = [replica.submit(prompt=p, max_new_tokens=12, ignore_eos=True) for p in PROMPTS]

    assert replica.result(stays).token_ids == reference.greedy(PROMPTS[2], 60, eos=None)
    for request_id, prompt in zip(joins, PROMPTS, strict=True):
        assert replica.result(request_id).token_ids == reference.greedy(prompt, 12, eos=None)


def test_more_requests_than_slots_are_all_answered(replica: Replica, reference: Reference) -> None:
    results = replica.generate_all(
        [{"prompt": PROMPTS[i % 6], "max_new_tokens": 4, "ignore_eos": True} for i in range(30)]
    )

    wanted = [reference.greedy(prompt, 4, eos=None) for prompt in PROMPTS]
    assert [result.token_ids for result in results] == wanted * 5


def test_a_sampled_answer_is_the_same_alone_and_in_a_batch(replica: Replica) -> None:
    request = {"prompt": PROMPTS[2], "max_new_tokens": 24, "ignore_eos": True} | SAMPLED
    others = [
        {"prompt": p, "max_new_tokens": 30, "temperature": 1.5, "top_k": 50, "seed": i}
        for i, p in enumerate(PROMPTS)
    ]

    alone = replica.generate(**request)
    in_batch = replica.generate_all([*others, request])[-1]

    assert in_batch.token_ids == alone.token_ids
    assert in_batch.text == alone.text


def test_another_seed_gives_another_answer(replica: Replica) -> None:
    request: dict[str, Any] = {"prompt": PROMPTS[2], "max_new_tokens": 16, "temperature": 1.0}

    first, second = replica.generate_all([request | {"seed": 1}, request | {"seed": 2}])

    assert first.token_ids != second.token_ids


@pytest.mark.parametrize("how", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_an_answer_resumed_at_any_token_goes_on_with_the_same_tokens_and_text(
    replica: Replica, how: dict[str, Any]
) -> None:
    request = {"prompt": PROMPTS[2], "max_new_tokens": 64, "ignore_eos": True} | how
    whole = replica.generate(**request)

    # Every token where stages are most, some where they are fewer.
    cuts = range(1, 65, 1 if replica.config.num_stages == 4 else 9)
    resumed = replica.generate_all(
        [request | {"generated": tuple(whole.token_ids[:cut])} for cut in cuts]
    )

    for cut, result in zip(cuts, resumed, strict=True):
        assert result.token_ids == whole.token_ids[cut:]
        assert result.end == whole.end == Finish("length", whole.end.num_prompt_tokens, 64)
        assert whole.text.endswith(result.text)


def test_one_stage_and_four_draw_the_same(replicas: Callable[[int], Replica]) -> None:
    requests = [
        {"prompt": p, "max_new_tokens": 40, "ignore_eos": True, "temperature": 1.0, "seed": i}
        for i, p in enumerate(PROMPTS)
    ]

    one, four = (replicas(num_stages).generate_all(requests) for num_stages in (1, 4))

    assert [result.token_ids for result in one] == [result.token_ids for result in four]


def test_an_end_token_ends_the_answer(replica: Replica, reference: Reference) -> None:
    # The seed was looked for: at this temperature it draws the end token soon.
    request: dict[str, Any] = {"prompt": "x", "max_new_tokens": 100, "temperature": 10.0}
    results = replica.generate_all([request | {"seed": seed} for seed in range(40)])

    ended = [result for result in results if EOS in result.token_ids]
    assert ended, "no seed drew the end token"
    for result in ended:
        assert result.reason == "eos"
        assert result.token_ids.index(EOS) == len(result.token_ids) - 1


def test_a_stop_string_across_tokens_ends_the_answer(
    replica: Replica, reference: Reference
) -> None:
    request: dict[str, Any] = {"prompt": PROMPTS[2], "max_new_tokens": 30, "ignore_eos": True}
    free = replica.generate(**request)
    pieces = [reference.tokenizer.decode([t]) for t in free.token_ids]
    stop = (pieces[10][-1:] + pieces[11] + pieces[12][:1]) or "?"

    stopped = replica.generate(**request, stop=(stop,))

    assert stopped.reason == "stop"
    assert stopped.text == free.text[: free.text.index(stop)]
    assert stopped.token_ids == free.token_ids[: len(stopped.token_ids)]


def test_a_full_context_ends_the_answer(replica: Replica, reference: Reference) -> None:
    result = replica.generate(prompt=PROMPTS[3], max_new_tokens=1000, ignore_eos=True)

    num_prompt = len(reference.token_ids(PROMPTS[3]))
    assert result.end == Finish("length", num_prompt, 128 - num_prompt)
    assert result.token_ids == reference.greedy(PROMPTS[3], 128 - num_prompt, eos=None)


def test_a_prompt_as_long_as_the_context_is_refused_and_a_shorter_one_is_not(
    replica: Replica,
) -> None:
    too_long = replica.generate(prompt_token_ids=(5,) * 128)
    longest = replica.generate(prompt_token_ids=(5,) * 127, max_new_tokens=9)

    assert isinstance(too_long.end, Failure)
    assert too_long.end.status == 422
    assert len(longest.token_ids) == 1


def test_a_token_outside_the_vocabulary_is_refused(replica: Replica) -> None:
    result = replica.generate(prompt_token_ids=(2048,))

    assert isinstance(result.end, Failure)
    assert "0 to 2047" in result.end.message


def test_closing_leaves_no_process(model_folder: Path) -> None:
    others = set(psutil.Process().children())
    replica = Replica(model_folder, 2, has_standby=True)
    started = set(psutil.Process().children()) - others

    replica.close()

    assert len(started) >= 2
    assert not any(process.is_running() for process in started)


def test_a_model_that_does_not_fit_its_configuration_is_refused(model_folder: Path) -> None:
    with pytest.raises(ValueError, match="partition"):
        Replica(model_folder, 2, partition=(2, 2))


def test_a_rank_without_a_stage_to_drive_has_nothing_to_do(model_folder: Path) -> None:
    engine = start_engine(model_config(model_folder, 2), Place(rank=1, num_ranks=2))

    with pytest.raises(RuntimeError, match="only rank 0"):
        engine.submit("a", GenerationRequest("x"))
    assert engine.take("a") == []
    assert not engine.wait(0)
