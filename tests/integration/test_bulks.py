"""Bulks as clients meet them: over real sockets, with a played runner that does the work."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from scheduler import bulk_book
from scheduler.gateway import bulk_intake, bulks_api
from scheduler.operations import TenantChange
from scheduler.task import TaskState
from scheduler.testing.tasks import problems
from tests.integration.gateway_system import MAX_BODY_BYTES, GatewaySystem
from tests.waiting import until

NDJSON = {"Content-Type": "application/x-ndjson"}


def lines(*inputs: Any) -> bytes:
    return b"".join(json.dumps(each).encode() + b"\n" for each in inputs)


def generations(count: int, start: int = 0) -> bytes:
    return lines(*({"prompt": f"p{start + n}", "max_new_tokens": 2} for n in range(count)))


async def begin(http: aiohttp.ClientSession, body: Any, query: str = "", **headers: str) -> Any:
    url = f"/v1/bulks?model=demo{query}"
    answer = await http.post(url, data=body, headers={**NDJSON, **headers})
    return {"http": answer.status, **(await answer.json())}


async def results(http: aiohttp.ClientSession, bulk_id: str, query: str = "") -> list[Any]:
    answer = await http.get(f"/v1/bulks/{bulk_id}/results{query}")
    assert answer.status == 200
    return [json.loads(line) for line in (await answer.text()).splitlines()]


async def test_every_input_has_its_outcome_in_order(
    http: aiohttp.ClientSession, system: GatewaySystem
) -> None:
    bulk = await begin(http, generations(450), "&name=nightly")
    outcomes = await results(http, bulk["bulk_id"])

    assert (bulk["http"], bulk["state"], bulk["num_inputs"]) == (202, "closed", 450)
    assert (bulk["class"], bulk["name"]) == ("batch", "nightly")
    assert [outcome["index"] for outcome in outcomes] == list(range(450))
    assert {outcome["state"] for outcome in outcomes} == {"succeeded"}
    task = await system.book.task(outcomes[449]["task_id"])
    assert (task.document["prompt"], task.priority_class) == ("p449", "batch")
    assert outcomes[449]["result"] == {
        "text": "w0 w1 ",
        "token_ids": [0, 1],
        "finish_reason": "length",
        "usage": {"prompt_tokens": 2, "output_tokens": 2},
    }
    assert await system.store.read(problems) == []


async def test_an_input_may_stand_beside_its_options(
    http: aiohttp.ClientSession, system: GatewaySystem
) -> None:
    given = {"input": {"prompt": "x", "max_new_tokens": 1}, "priority": 7, "deadline_s": 60}

    bulk = await begin(http, lines(given), "&class=standard")

    (outcome,) = await results(http, bulk["bulk_id"])
    task = await system.book.task(outcome["task_id"])
    assert (task.priority, task.priority_class) == (7, "standard")
    assert task.deadline_at == pytest.approx(task.accepted_at + 60, abs=5)


async def test_an_encoder_takes_its_input_as_it_is(http: aiohttp.ClientSession) -> None:
    url = "/v1/bulks?model=encoder"
    answer = await http.post(url, data=lines({"input": ["a", "bcd"]}), headers=NDJSON)

    (outcome,) = await results(http, (await answer.json())["bulk_id"])
    assert outcome["result"]["embeddings"] == [[1.0, 0.5], [3.0, 0.5]]


async def test_failures_are_told_in_their_place(http: aiohttp.ClientSession) -> None:
    prompts = ("good", "fail at once", "good")
    bulk = await begin(http, lines(*({"prompt": p, "max_new_tokens": 1} for p in prompts)))

    outcomes = await results(http, bulk["bulk_id"])

    assert [outcome["state"] for outcome in outcomes] == ["succeeded", "failed", "succeeded"]
    assert outcomes[1]["error"]["field"] == "prompt"
    assert "result" not in outcomes[1]


# -- uploads that are refused, break off and go on


@pytest.mark.parametrize(
    ("bad", "status", "word"),
    [
        (b"{not json", 400, "JSON"),
        (b"[1]", 400, "object"),
        (lines({"prompt": "x", "max_new_tokens": 0}).strip(), 422, "max_new_tokens"),
        (lines({"input": {"prompt": "x"}, "colour": 1}).strip(), 422, "colour"),
        (lines({"prompt": "x" * MAX_BODY_BYTES}).strip(), 413, "longer"),
    ],
)
async def test_a_bad_line_is_named_and_those_before_it_are_accepted(
    http: aiohttp.ClientSession, bad: bytes, status: int, word: str
) -> None:
    body = generations(3) + b"\n" + bad + b"\n" + generations(2, 3)
    refusal = await begin(http, body, **{"Idempotency-Key": "k"})

    assert (refusal["http"], refusal["code"]) == (status, status)
    assert (refusal["line"], refusal["num_inputs"]) == (5, 3)
    assert refusal["message"].startswith("line 5: ")
    assert word in refusal["message"]


async def test_an_upload_goes_on_under_its_key_and_doubles_nothing(
    http: aiohttp.ClientSession, system: GatewaySystem
) -> None:
    key = {"Idempotency-Key": "k"}
    first = await begin(http, generations(3) + b"{broken", **key)
    again = await begin(http, generations(5), **key)

    assert again["bulk_id"] == first["bulk_id"]
    assert (again["state"], again["num_inputs"]) == ("closed", 5)
    assert len(await results(http, again["bulk_id"])) == 5
    assert len(await system.book.tasks()) == 5


async def test_an_upload_goes_on_by_the_bulks_id_from_a_place(http: aiohttp.ClientSession) -> None:
    bulk = await begin(http, generations(3), "&close=false")

    url = f"/v1/bulks/{bulk['bulk_id']}/inputs?from=2"
    answer = await http.post(url, data=generations(2, 2), headers=NDJSON)

    assert bulk["state"] == "open"
    assert (await answer.json())["num_inputs"] == 4
    assert len(await results(http, bulk["bulk_id"])) == 4


async def test_a_gap_is_refused(http: aiohttp.ClientSession) -> None:
    bulk = await begin(http, generations(3), "&close=false")

    url = f"/v1/bulks/{bulk['bulk_id']}/inputs?from=4"
    answer = await http.post(url, data=generations(1), headers=NDJSON)

    assert answer.status == 422
    assert (await answer.json())["field"] == "from"


async def test_other_inputs_under_the_same_key_are_refused(http: aiohttp.ClientSession) -> None:
    key = {"Idempotency-Key": "k"}
    await begin(http, generations(3), **key)

    other = await begin(http, generations(3, start=10), **key)
    more = await begin(http, generations(4), **key)
    model = await http.post("/v1/bulks?model=encoder", data=b"", headers={**NDJSON, **key})

    assert (other["http"], other["type"]) == (409, "InputsDiffer")
    assert (more["http"], more["type"], more["num_inputs"]) == (409, "BulkClosed", 3)
    assert (await model.json())["type"] == "InputsDiffer"


async def test_an_upload_that_breaks_off_keeps_what_was_accepted(
    http: aiohttp.ClientSession, system: GatewaySystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk_intake, "BATCH", 10)
    is_accepted = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield generations(25)
        await until(system.book.tasks, lambda tasks: len(tasks) >= 20)
        is_accepted.set()
        await asyncio.Event().wait()

    sending = asyncio.create_task(begin(http, body(), **{"Idempotency-Key": "k"}))
    await asyncio.wait_for(is_accepted.wait(), 5)
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    again = await begin(http, generations(30), **{"Idempotency-Key": "k"})

    assert again["num_inputs"] == 30
    assert len(await system.book.tasks()) == 30


async def test_a_quota_lets_in_what_it_has_room_for() -> None:
    system = GatewaySystem(has_runner=False)
    await system.open()
    await system.operations.set_tenant("default", TenantChange(max_queued=30))

    async with aiohttp.ClientSession(system.url) as http:
        refusal = await begin(http, generations(400))

    assert (refusal["http"], refusal["type"]) == (429, "QuotaExceeded")
    assert (refusal["num_inputs"], refusal["line"]) == (30, None)
    assert refusal["retry_after_s"] > 0
    await system.close()


async def test_a_class_that_a_tenant_may_not_use_is_refused_at_once(
    http: aiohttp.ClientSession, system: GatewaySystem
) -> None:
    await system.operations.set_tenant("default", TenantChange(classes=("standard",)))

    refused = await begin(http, generations(1))
    unknown = await begin(http, generations(1), "&class=golden")

    assert (refused["http"], refused["type"]) == (403, "ClassNotAllowed")
    assert (unknown["http"], unknown["field"]) == (422, "class")
    assert await system.front.bulks.bulks() == []


@pytest.mark.parametrize(
    ("url", "headers", "status", "field"),
    [
        ("/v1/bulks", NDJSON, 422, "model"),
        ("/v1/bulks?model=nobody", NDJSON, 404, "model"),
        ("/v1/bulks?model=asleep", NDJSON, 503, ""),
        ("/v1/bulks?model=demo&colour=red", NDJSON, 422, "colour"),
        ("/v1/bulks?model=demo&from=-1", NDJSON, 422, "from"),
        ("/v1/bulks?model=demo&close=maybe", NDJSON, 422, "close"),
        (f"/v1/bulks?model=demo&name={'x' * 201}", NDJSON, 422, "name"),
        ("/v1/bulks?model=demo", {"Content-Type": "image/png"}, 415, "Content-Type"),
        ("/v1/bulks/nobody/inputs", NDJSON, 404, "bulk_id"),
    ],
)
async def test_a_wrong_request_names_what_is_wrong(
    http: aiohttp.ClientSession, url: str, headers: dict[str, str], status: int, field: str
) -> None:
    answer = await http.post(url, data=generations(1), headers=headers)

    assert (answer.status, (await answer.json())["field"]) == (status, field)


# -- looking at bulks, and taking them back


async def test_progress_counts_inputs_by_state(
    http: aiohttp.ClientSession, system: GatewaySystem
) -> None:
    held = {"prompt": "hold", "max_new_tokens": 5}
    bulk = await begin(http, generations(2) + lines(held))
    await results(http, bulk["bulk_id"], "?partial=true")

    told = await until(lambda: progress(http, bulk["bulk_id"]), lambda told: told["num_ended"] >= 2)

    assert told["counts"] == {"succeeded": 2, "leased": 1}
    assert (told["num_inputs"], told["num_ended"]) == (3, 2)


async def progress(http: aiohttp.ClientSession, bulk_id: str) -> Any:
    return await (await http.get(f"/v1/bulks/{bulk_id}")).json()


async def test_partial_results_are_those_there_are(
    http: aiohttp.ClientSession, system: GatewaySystem
) -> None:
    held = {"prompt": "hold", "max_new_tokens": 5}
    bulk = await begin(http, lines(held) + generations(2))
    await until(lambda: progress(http, bulk["bulk_id"]), lambda told: told["num_ended"] >= 2)

    some = await results(http, bulk["bulk_id"], "?partial=true")
    rest = await results(http, bulk["bulk_id"], "?partial=true&from=2")

    assert [outcome["index"] for outcome in some] == [1, 2]
    assert [outcome["index"] for outcome in rest] == [2]


async def test_results_are_followed_to_the_end(
    http: aiohttp.ClientSession, system: GatewaySystem
) -> None:
    assert system.runner is not None
    held = {"prompt": "hold", "max_new_tokens": 5}
    bulk = await begin(http, generations(1) + lines(held) + generations(1))

    answer = await http.get(f"/v1/bulks/{bulk['bulk_id']}/results")
    first = json.loads(await answer.content.readline())
    system.runner.go_on.set()
    rest = [json.loads(line) async for line in answer.content]

    assert first["index"] == 0
    assert [outcome["index"] for outcome in rest] == [1, 2]


async def test_silence_is_filled_with_what_json_does_not_mind(
    http: aiohttp.ClientSession, system: GatewaySystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulks_api, "HEARTBEAT_S", 0.02)
    assert system.runner is not None
    bulk = await begin(http, lines({"prompt": "hold", "max_new_tokens": 5}))

    answer = await http.get(f"/v1/bulks/{bulk['bulk_id']}/results")
    beat = await answer.content.readexactly(2)
    system.runner.go_on.set()
    rest = await answer.content.read()

    assert beat == b"  "
    assert json.loads(beat + rest)["index"] == 0


async def test_a_reader_is_cut_off_when_the_gateway_closes(
    http: aiohttp.ClientSession, system: GatewaySystem
) -> None:
    bulk = await begin(http, generations(1) + lines({"prompt": "hold", "max_new_tokens": 5}))
    answer = await http.get(f"/v1/bulks/{bulk['bulk_id']}/results")
    await answer.content.readline()

    system.front.close()

    with pytest.raises(aiohttp.ClientPayloadError):
        await answer.content.read()
    answer.close()


async def test_a_cancelled_bulk_stops_what_runs_and_what_waits(
    http: aiohttp.ClientSession, system: GatewaySystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk_book, "BATCH", 50)
    hold = lines(*({"prompt": "hold", "max_new_tokens": 5} for _ in range(40)))
    bulk = await begin(http, hold + generations(10), "&close=false")

    answer = await http.post(f"/v1/bulks/{bulk['bulk_id']}/cancel")
    again = await http.post(f"/v1/bulks/{bulk['bulk_id']}/cancel")
    more = await http.post(f"/v1/bulks/{bulk['bulk_id']}/inputs?from=50", data=generations(1))

    told = await answer.json()
    assert (told["state"], told["num_ended"]) == ("cancelled", 50)
    assert told["counts"]["cancelled"] >= 40
    assert await again.json() == told
    assert more.status == 409
    assert await system.book.tasks(state=TaskState.LEASED) == []
    assert await system.store.read(problems) == []


async def test_a_bulk_does_not_exist_for_others(http: aiohttp.ClientSession) -> None:
    bulk = await begin(http, generations(1))
    other = {"X-Plait-Tenant": "other"}
    path = f"/v1/bulks/{bulk['bulk_id']}"

    for method, url in (
        ("GET", path),
        ("GET", f"{path}/results"),
        ("POST", f"{path}/cancel"),
        ("POST", f"{path}/inputs"),
    ):
        answer = await http.request(method, url, headers=other)
        assert (answer.status, (await answer.json())["type"]) == (404, "BulkNotFound")
    assert (await (await http.get("/v1/bulks", headers=other)).json()) == {"bulks": []}


async def test_bulks_are_listed_newest_first(http: aiohttp.ClientSession) -> None:
    ids = [(await begin(http, generations(1)))["bulk_id"] for _ in range(3)]

    page = await (await http.get("/v1/bulks?limit=2")).json()
    rest = await (await http.get(f"/v1/bulks?before={ids[1]}")).json()

    assert [bulk["bulk_id"] for bulk in page["bulks"]] == ids[:0:-1]
    assert [bulk["bulk_id"] for bulk in rest["bulks"]] == ids[:1]
