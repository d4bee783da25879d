"""A constrained answer matches its schema or expression, whatever the model says."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from handlers.pipeline.sampling import Sampler, check, grammar
from handlers.pipeline.step import Draw, Open, Row, Sampling
from handlers.wire import BadRequest
from tests.integration.sampler_rows import answer, random_logits

VOCABULARY = 2048
EOS = 2
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 8},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "tags": {"type": "array", "items": {"enum": ["a", "b\n", "ü"]}, "maxItems": 3},
            "child": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
        },
        "required": ["name", "age", "tags", "child"],
        "additionalProperties": False,
    }
)
EXPRESSIONS = (
    r"[a-z]{3,9}@[a-z]{1,5}\.(com|org)",
    r"(\d{1,3}\.){3}\d{1,3}",
    r"€{2,5}ü?",
    r"a/\nstart: /b/",
    r"-?(0|[1-9]\d{0,8})(\.\d{1,3})?",
)


@pytest.fixture(scope="session")
def tokenizer(demo_folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(demo_folder)


def text_of(draws: list[Draw], tokenizer: Any) -> str:
    """The text before the end, which must be there, and be all that follows."""
    token_ids = [draw.token_id for draw in draws]
    end = token_ids.index(EOS)
    assert set(token_ids[end:]) == {EOS}
    return str(tokenizer.decode(token_ids[:end]))


def hows(**fields: Any) -> list[Sampling]:
    """Ways to draw a constrained answer that make it take many different turns."""
    greedy = [Sampling(frequency_penalty=0.1, **fields)]
    return greedy + [
        Sampling(1.0, seed=seed, top_p=top_p, top_k=top_k, **fields)
        for seed, (top_p, top_k) in enumerate([(1.0, 0), (0.7, 0), (1.0, 5), (0.9, 50)] * 2)
    ]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_answers_match_their_expression(expression: str, tokenizer: Any) -> None:
    for seed, how in enumerate(hows(regex=expression)):
        found = answer(how, random_logits(VOCABULARY, seed), 60, tokenizer=tokenizer, end=EOS)

        assert re.fullmatch(expression, text_of(found, tokenizer))


def test_answers_parse_as_their_schema_says(tokenizer: Any) -> None:
    for seed, how in enumerate(hows(json_schema=SCHEMA)):
        source = random_logits(VOCABULARY, seed)
        draws = answer(how, source, 600, tokenizer=tokenizer, end=EOS)
        document = json.loads(text_of(draws, tokenizer))

        while document is not None:
            assert list(document) == ["name", "age", "tags", "child"]
            assert len(document["name"]) <= 8
            assert 0 <= document["age"] <= 150
            assert isinstance(document["age"], int)
            assert len(document["tags"]) <= 3
            assert set(document["tags"]) <= {"a", "b\n", "ü"}
            document = document["child"]


@pytest.mark.parametrize("fields", [{"json_schema": SCHEMA}, {"regex": "(ab|cd|é){90}"}])
def test_a_constrained_answer_goes_on_the_same_after_a_resume_at_any_position(
    fields: dict[str, str], tokenizer: Any
) -> None:
    how = Sampling(1.0, seed=8, top_p=0.95, presence_penalty=0.2, **fields)
    source = random_logits(VOCABULARY, 1)
    whole = answer(how, source, 64, tokenizer=tokenizer)
    said = [draw.token_id for draw in whole]

    for cut in range(64):
        found = answer(how, source, min(cut + 2, 64), said[:cut], tokenizer=tokenizer)
        assert found == whole[cut : cut + 2]


def test_constrained_and_free_rows_do_not_disturb_each_other(tokenizer: Any) -> None:
    sampler = Sampler(VOCABULARY, "cpu", lambda: tokenizer)
    logits = random_logits(VOCABULARY)(0)
    for slot, how in enumerate([Sampling(), Sampling(regex="x+"), Sampling(regex="[0-9]+")]):
        sampler.open(Open(slot, how, ()))

    rows = [Row(slot, 0, 1, is_drawn=True) for slot in range(3)]
    found = [draw.token_id for draw in sampler.draw(logits.expand(3, -1), rows) if draw]

    assert found[0] == int(logits.argmax())
    assert set(tokenizer.decode(found[1])) == {"x"}
    assert tokenizer.decode(found[2]).isdigit()


def test_every_end_token_may_end_a_complete_answer(tokenizer: Any) -> None:
    sampler = Sampler(VOCABULARY, "cpu", lambda: tokenizer, eos_token_ids=(EOS, 1))
    found = set()
    for seed in range(20):
        sampler.open(Open(0, Sampling(1.0, seed=seed, regex="x"), ()))
        for position in range(2):
            (draw,) = sampler.draw(torch.zeros(1, VOCABULARY), [Row(0, position, 1, is_drawn=True)])
            assert draw is not None
        found.add(draw.token_id)

    assert found == {EOS, 1}


def test_logits_without_a_token_have_none_in_a_constrained_answer(tokenizer: Any) -> None:
    logits = torch.cat([random_logits(VOCABULARY)(0), torch.full((100,), 50.0)])

    (draw,) = answer(Sampling(regex="[a-z]{5}"), lambda _: logits, 1, tokenizer=tokenizer)

    assert draw.token_id < VOCABULARY


def test_known_tokens_that_break_the_grammar_are_a_fault_of_that_row(tokenizer: Any) -> None:
    how, free = Sampling(regex="[0-9]+"), Sampling()
    sampler = Sampler(VOCABULARY, "cpu", lambda: tokenizer)
    sampler.open(Open(0, how, (), generated=tuple(tokenizer("no")["input_ids"])))
    sampler.open(Open(1, free, ()))

    bad, good = sampler.draw(
        torch.randn(2, VOCABULARY), [Row(0, 5, 1, is_drawn=True), Row(1, 5, 1, is_drawn=True)]
    )

    assert bad is not None
    assert good is not None
    assert bad.token_id == -1
    assert "grammar" in bad.fault
    assert not good.fault


def test_a_grammar_without_a_tokenizer_is_a_fault_of_that_row() -> None:
    (draw,) = answer(Sampling(regex="a"), random_logits(50), 1)

    assert "no tokenizer" in draw.fault


def test_a_grammar_that_leaves_only_impossible_tokens_is_a_fault(tokenizer: Any) -> None:
    logits = torch.full((VOCABULARY,), -torch.inf)
    logits[tokenizer("b")["input_ids"][-1]] = 0.0

    (draw,) = answer(Sampling(regex="a"), lambda _: logits, 1, tokenizer=tokenizer)

    assert "no token is left" in draw.fault


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"json_schema": "{"}, "EOF"),
        ({"json_schema": '{"type": "thing"}'}, "Invalid type: thing"),
        ({"json_schema": '{"not": {"type": "string"}}'}, "not"),
        ({"json_schema": '{"type": "integer", "minimum": 5, "maximum": 3}'}, "greater than"),
        ({"json_schema": '{"$ref": "#"}'}, "no text matches it"),
        ({"json_schema": '{"a":' * 2000 + "{}" + "}" * 2000}, "recursion limit"),
        ({"regex": "a*b("}, "unclosed group"),
        ({"regex": r"(a)\1"}, "backreferences"),
        ({"regex": r"[^\s\S]"}, "no text matches it"),
        ({"regex": "(" * 20000 + ")" * 20000}, "invalid regex"),
        ({"regex": "a" * (grammar.MAX_GRAMMAR_BYTES + 1)}, "longer than"),
        ({"regex": "\ud800"}, "surrogates not allowed"),
        ({"regex": "a", "json_schema": "{}"}, "at most one"),
    ],
)
def test_what_cannot_be_compiled_is_refused_at_the_door(
    fields: dict[str, str], words: str, tokenizer: Any
) -> None:
    with pytest.raises(BadRequest, match=re.escape(words)) as caught:
        check(Sampling(**fields), tokenizer)

    assert caught.value.field == next(iter(fields))
    assert len(caught.value.message) < 400


def test_what_asks_for_no_grammar_or_a_good_one_passes(tokenizer: Any) -> None:
    for how in (Sampling(), Sampling(json_schema=SCHEMA), Sampling(regex=EXPRESSIONS[0])):
        check(how, tokenizer)


def test_a_schema_makes_nobody_fetch_anything(tokenizer: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/schema.json"
        with pytest.raises(BadRequest, match="does not fetch"):
            check(Sampling(json_schema=json.dumps({"$ref": url})), tokenizer)
        with pytest.raises(TimeoutError):
            server.accept()


def test_a_grammar_is_compiled_once(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    real = grammar.compile_grammar

    def count(field: str, text: str, words: Any) -> Any:
        compiled.append(text)
        return real(field, text, words)

    monkeypatch.setattr(grammar, "compile_grammar", count)
    grammars = grammar.Grammars(lambda: tokenizer, VOCABULARY)

    first = grammars.open(Sampling(regex="a+"), ())
    first.add(tokenizer("b")["input_ids"][-1])
    second = grammars.open(Sampling(regex="a+", seed=1), ())

    assert compiled == ["a+"]
    assert first.fault
    assert not second.fault


def test_a_prepared_sampler_loads_no_tokenizer_when_a_grammar_comes(tokenizer: Any) -> None:
    loaded = []

    def load() -> Any:
        loaded.append(tokenizer)
        return tokenizer

    sampler = Sampler(VOCABULARY, "cpu", load)
    assert not loaded
    sampler.prepare()
    sampler.open(Open(0, Sampling(regex="a"), ()))

    assert len(loaded) == 1


def test_a_tokenizer_without_an_end_keeps_no_sampler_from_loading() -> None:
    class Endless:
        eos_token_id = None

    sampler = Sampler(VOCABULARY, "cpu", Endless)
    sampler.prepare()
    sampler.open(Open(0, Sampling(), ()))

    (drawn,) = sampler.draw(torch.eye(VOCABULARY)[:1], [Row(0, 0, 1, True)])
    assert drawn is not None
    assert drawn.token_id == 0


def test_a_tokenizer_without_an_end_takes_no_grammar(tokenizer: Any) -> None:
    class Endless:
        eos_token_id = None

        def __len__(self) -> int:
            return VOCABULARY

    with pytest.raises(BadRequest, match="no end-of-sequence token"):
        check(Sampling(regex="a"), Endless())
