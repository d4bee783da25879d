"""What every fairness policy promises: one suite over every file of scheduler/policies.

A file that is added is found here by its folder; one whose promises are not written down below
fails.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import pytest

from scheduler import moves, plugins, policies
from scheduler.errors import StartupError
from scheduler.fair_queue import FairQueue
from scheduler.moves import Rules
from scheduler.policies.base import Load, Policy
from scheduler.records import changed
from scheduler.settings import load
from scheduler.stores.base import Transaction
from scheduler.task import Task
from scheduler.testing.tasks import MODEL, MemoryDisk, chunk, problems, submission

#: Whether a policy is fair: nobody waits for longer because of what others send meanwhile.
IS_FAIR = {"deficit_round_robin": True, "fcfs": False, "virtual_time": True}
LOAD = Load(
    charge=100, excess=30, refund=20, num_in_flight=4, weights_permille={"ann": 1000, "bob": 500}
)


class Queue:
    """The tasks of one model under a policy, and shorthands for what happens to them."""

    def __init__(self, name: str) -> None:
        self.policy: Policy = plugins.find(policies, name).Policy()
        self.disk = MemoryDisk()
        self.now = 0.0
        self.num_tasks = 0
        self.rules = self._rules()

    def _rules(self) -> Rules:
        return Rules(FairQueue(self.policy), lease_ttl_s=10.0, max_attempts=5)

    @property
    def tx(self) -> Transaction:
        return self.disk.transaction

    def restart(self) -> None:
        """Another process goes on with what the store holds."""
        self.policy = type(self.policy)()
        self.rules = self._rules()
        self.disk.restart()

    def send(self, tenant: str, count: int = 1, **changes: object) -> None:
        for _ in range(count):
            self.now += 1.0
            self.num_tasks += 1
            task_id = f"t{self.num_tasks:05}"
            moves.submit(self.tx, self.rules, submission(tenant, **changes), task_id, self.now)

    def claim(self) -> Task | None:
        got = moves.claim(self.tx, self.rules, MODEL, "r1", "demo__r0", 1, self.now).value
        return got[0].task if got else None

    def serve(self, count: int) -> list[str]:
        """Serve so many tasks to their end; their tenants, in order."""
        served = []
        for _ in range(count):
            task = self.claim()
            assert task is not None
            self.finish(task)
            served.append(task.tenant)
        return served

    def finish(self, task: Task, num_tokens: int = 10) -> None:
        moves.append(self.tx, self.rules, task.id, task.fence, [chunk(0, *range(num_tokens))], 0)
        moves.succeed(self.tx, self.rules, task.id, task.fence, {}, self.now)

    def set_tenant(self, name: str, **changes: object) -> None:
        self.tx.put_tenant(changed(self.tx.tenant(name), **changes))
        self.rules.queue.regulate(self.tx, name, has_new_limit=True)

    def accounts(self) -> list[tuple[int, int]]:
        return [(flow.virtual_time, flow.deficit) for flow in self.tx.flows(MODEL)]


@pytest.fixture(params=plugins.names(policies))
def queue(request: pytest.FixtureRequest) -> Iterator[Queue]:
    made = Queue(request.param)
    with made.disk:
        yield made
        assert problems(made.tx) == []


# -- the family


def test_every_policy_says_here_whether_it_is_fair() -> None:
    assert set(plugins.names(policies)) == set(IS_FAIR)


@pytest.mark.parametrize("name", plugins.names(policies))
def test_a_policy_says_what_it_does_and_what_its_bound_is(name: str) -> None:
    module = plugins.find(policies, name)

    assert Policy in module.Policy.__mro__
    assert module.Policy.__doc__
    assert re.search(r"\bbound\b", module.__doc__ or "")
    assert repr(FairQueue(module.Policy())) == f"<FairQueue policy={name}>"


def test_an_unknown_policy_is_refused_with_those_there_are() -> None:
    known = "deficit_round_robin, fcfs, virtual_time"

    with pytest.raises(StartupError, match=f"'lottery' is none of the policies there are: {known}"):
        plugins.find(policies, "lottery")
    with pytest.raises(StartupError, match=rf"policy: .*there are: {known} \(given: 'lottery'\)"):
        load({"policy": "lottery"})


# -- the bound it states


@pytest.mark.parametrize("name", plugins.names(policies))
def test_a_bound_is_stated_for_each_flow_or_not_at_all(name: str) -> None:
    bound = plugins.find(policies, name).Policy().bound(LOAD)

    if not IS_FAIR[name]:
        assert bound is None
        return
    assert bound is not None
    assert set(bound) == {"ann", "bob"}
    assert 0 < bound["ann"] <= bound["bob"]


@pytest.mark.parametrize("name", [name for name, is_fair in IS_FAIR.items() if is_fair])
@pytest.mark.parametrize("field", ["charge", "excess", "refund", "num_in_flight", "lowered"])
def test_a_bound_grows_with_the_load_and_with_nothing_else(name: str, field: str) -> None:
    policy = plugins.find(policies, name).Policy()
    bound = policy.bound(LOAD)
    more = policy.bound(replace(LOAD, **{field: 2 * getattr(LOAD, field)}))

    assert bound is not None
    assert more is not None
    assert all(bound[tenant] <= more[tenant] <= 3 * bound[tenant] for tenant in bound)


# -- what is served


def test_work_is_conserved(queue: Queue) -> None:
    queue.send("ann", 7)
    queue.send("bob", 5)
    queue.set_tenant("bob", weight_permille=1)

    assert sorted(queue.serve(12)) == ["ann"] * 7 + ["bob"] * 5
    assert queue.claim() is None


def test_a_task_that_costs_far_more_than_its_tenant_is_owed_is_served_at_once(queue: Queue) -> None:
    queue.set_tenant("ann", weight_permille=1)
    queue.send("ann", estimated_cost=10**9)

    assert queue.claim() is not None


def test_a_flow_may_leave_and_return(queue: Queue) -> None:
    queue.send("ann", 3)
    queue.send("bob", 60)
    queue.serve(40)
    queue.send("ann", 20)

    served = queue.serve(43)

    assert served.count("ann") == 20
    assert queue.claim() is None


def test_what_was_not_used_is_given_back_exactly_although_the_weight_has_changed(
    queue: Queue,
) -> None:
    queue.set_tenant("ann", weight_permille=333)
    queue.send("ann", 2, estimated_cost=1001)
    task = queue.claim()
    assert task is not None
    (charged,) = queue.tx.flows(MODEL)
    queue.set_tenant("ann", weight_permille=7000)

    moves.release(queue.tx, queue.rules, task.id, task.fence, "worker died", queue.now)

    (flow,) = queue.tx.flows(MODEL)
    assert flow.charged_cost == 0
    if not task.charged_virtual_time:
        return  # it took nothing
    given_back = queue.policy.charge(charged, -task.charged_virtual_time)
    assert (flow.virtual_time, flow.deficit) == (given_back.virtual_time, given_back.deficit)
    again = queue.policy.charge(given_back, task.charged_virtual_time)
    assert (again.virtual_time, again.deficit) == (charged.virtual_time, charged.deficit)


def test_a_task_is_settled_with_what_it_used(queue: Queue) -> None:
    queue.send("ann", 2, estimated_cost=400)
    first = queue.claim()
    assert first is not None

    queue.finish(first)

    (flow,) = queue.tx.flows(MODEL)
    assert flow.charged_cost == 5 + 2 * 10


def test_a_weight_that_changes_holds_from_the_next_claim_on(queue: Queue) -> None:
    queue.send("ann", 30)
    queue.send("bob", 30)
    queue.serve(10)
    queue.set_tenant("ann", weight_permille=100_000)
    queue.restart()

    assert len(queue.serve(50)) == 50


def test_a_restart_changes_no_decision(queue: Queue, request: pytest.FixtureRequest) -> None:
    other = Queue(type(queue.policy).__module__.rpartition(".")[2])
    orders: list[list[str]] = []
    for each, is_restarted in ((queue, False), (other, True)):
        order = []
        each.set_tenant("cyd", weight_permille=3000)
        for number in range(60):
            each.send(
                ("ann", "bob", "cyd", "bob")[number % 4], estimated_cost=25 + 700 * (number % 3)
            )
            if number % 3:
                order += each.serve(1)
            if is_restarted:
                each.restart()
        orders.append(order + each.serve(20))

    assert orders[0] == orders[1]
    assert queue.accounts() == other.accounts()


def test_nobody_waits_for_ever_behind_those_who_keep_coming(queue: Queue) -> None:
    for tenant in ("ann", "bob"):
        queue.send(tenant, 10)
    queue.send("cyd")
    served: list[str] = []
    while "cyd" not in served:
        for tenant in ("ann", "bob"):
            queue.send(tenant, 2)
        served += queue.serve(2)
        assert len(served) < 1000

    assert served.count("ann") + served.count("bob") < 1000


def test_a_fair_policy_serves_a_light_tenant_before_a_flood_is_over(queue: Queue) -> None:
    queue.send("flood", 400)
    queue.serve(5)
    queue.send("light")

    served = queue.serve(200)

    name = type(queue.policy).__module__.rpartition(".")[2]
    assert ("light" in served) == IS_FAIR[name]


@pytest.mark.parametrize("before", plugins.names(policies))
def test_another_policys_flows_are_taken_over_with_no_advantage(queue: Queue, before: str) -> None:
    queue.now = 1e9  # as moments are: a policy that orders by them has large numbers
    after, queue.policy = queue.policy, plugins.find(policies, before).Policy()
    queue.rules = queue._rules()
    queue.send("old", 60)
    queue.serve(20)
    running = queue.claim()
    assert running is not None

    queue.policy = after
    queue.restart()
    queue.rules.queue.adopt(queue.tx, [MODEL])
    queue.restart()
    queue.finish(running)
    queue.send("new", 200)

    served = queue.serve(200)
    bound = queue.policy.bound(replace(LOAD, charge=25, excess=0, refund=0))
    waits_at_most = 200 if bound is None else 2 * bound["ann"] / 25
    assert served.count("old") == 39
    assert served.index("old") <= waits_at_most


# -- caps


def test_a_tenant_at_its_cap_takes_no_part_in_any_class(queue: Queue) -> None:
    queue.set_tenant("ann", max_in_flight=1)
    queue.send("ann", 2)
    running = queue.claim()
    assert running is not None
    queue.send("ann", priority_class="interactive")  # a flow that is new while it is held

    assert queue.claim() is None

    queue.finish(running)

    assert queue.claim() is not None
    assert queue.claim() is None


def test_a_cap_that_is_lifted_gives_no_credit(queue: Queue) -> None:
    queue.set_tenant("capped", max_in_flight=1)
    queue.send("capped", 400)
    held = queue.claim()
    queue.send("other", 500)
    assert held is not None
    assert queue.serve(100) == ["other"] * 100

    queue.finish(held)
    queue.set_tenant("capped", max_in_flight=None)
    queue.restart()

    served = queue.serve(400).count("other")
    load = replace(LOAD, charge=25, excess=0, refund=0, weights_permille={"either": 1000})
    bound = queue.policy.bound(load)
    # At equal weights and costs each gets half, but for the bound.
    assert bound is None or abs(served - 200) <= bound["either"] / 25
