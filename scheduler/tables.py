"""How the command line shows what the gateway's API answers: tables and short stories."""

from __future__ import annotations

import datetime
from typing import Any

from rich.table import Table

#: Columns whose values must stay in one piece.
_MIN_WIDTHS = {"TASK": 26, "BULK": 26, "REPLICA": 12}


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        # Ids and names are there to be copied: a narrow terminal wraps, it does not cut them.
        table.add_column(column, overflow="fold", min_width=_MIN_WIDTHS.get(column))
    return table


def task_table(listing: Any) -> Table:
    table = _table("TASK", "MODEL", "STATE", "TOKENS", "ATTEMPT", "ACCEPTED")
    for task in listing["tasks"]:
        table.add_row(
            task["task_id"],
            task["model"],
            task["state"],
            str(task["num_tokens"]),
            str(task["attempt"]),
            _moment(task["accepted_at"]),
        )
    return table


def dead_table(listing: Any) -> Table:
    table = _table("TASK", "TENANT", "MODEL", "LOST", "TOKENS", "ENDED", "WHY")
    for task in listing["tasks"]:
        why = task["error"]["message"] if task["error"] else ""
        table.add_row(
            task["task_id"],
            task["tenant"],
            task["model"],
            str(task["num_lost"]),
            str(task["num_tokens"]),
            _moment(task["finished_at"]),
            why,
        )
    return table


def tenant_table(listing: Any) -> Table:
    """Tenants with what they have of what they may have."""
    table = _table("TENANT", "WEIGHT", "QUEUED", "IN FLIGHT", "COST/MIN", "CLASSES", "SERVED")
    for tenant in listing["tenants"]:
        served = sum(tenant["served_cost"].values())
        table.add_row(
            tenant["tenant"],
            f"{tenant['weight']:g}",
            _of(tenant["queued"], tenant["max_queued"]),
            _of(tenant["in_flight"], tenant["max_in_flight"]),
            "-" if tenant["cost_per_minute"] is None else str(tenant["cost_per_minute"]),
            "all" if tenant["classes"] is None else " ".join(tenant["classes"]),
            str(served),
        )
    return table


def key_table(listing: Any) -> Table:
    table = _table("KEY", "TENANT", "ROLE", "NAME", "CREATED", "REVOKED")
    for key in listing["keys"]:
        created, revoked = _moment(key["created_at"]), _moment(key["revoked_at"])
        table.add_row(key["key_id"], key["tenant"], key["role"], key["name"], created, revoked)
    return table


def class_table(listing: Any) -> Table:
    table = _table("CLASS", "WEIGHT")
    for each in listing["classes"]:
        table.add_row(each["class"], f"{each['weight']:g}")
    return table


def cost_table(listing: Any) -> Table:
    table = _table("MODEL", "DEVICE KIND", "FACTOR")
    for each in listing["cost_factors"]:
        table.add_row(each["model"], each["device_kind"], f"{each['factor']:g}")
    return table


def provider_table(listing: Any) -> Table:
    table = _table("PROVIDER", "KIND", "STATE", "CONTAINERS", "AN HOUR", "DEVICES", "MODELS", "WHY")
    for each in listing["providers"]:
        devices = f"{each['num_devices']} {each['device_kind']}" if each["num_devices"] else "cpu"
        table.add_row(
            each["name"],
            each["kind"],
            each["state"],
            f"{each['num_up']} of {each['num_ordered']}, most {each['max_containers']}",
            f"{each['price_per_hour']:g}",
            devices,
            "any" if each["models"] is None else ", ".join(each["models"]),
            each["reason"],
        )
    for model, reason in listing["shortages"].items():
        table.add_row("-", "-", "short", "-", "-", "-", model, reason)
    return table


def container_table(listing: Any) -> Table:
    table = _table(
        "PROVIDER", "ORDER", "STATE", "CONTAINER", "PROVIDER SAYS", "RUNNER", "SINCE", "WHY"
    )
    for each in listing["containers"]:
        table.add_row(
            each["provider"],
            each["key"],
            "stalled" if each["stalled_at"] else each["state"],
            each["container"] or "-",
            " ".join(filter(None, (each["provider_state"], each["provider_reason"]))) or "-",
            each["runner"] or "-",
            _moment(each["up_at"] or each["ordered_at"]),
            each["reason"],
        )
    for each in listing["unknown"]:
        table.add_row(
            each["provider"], "-", "unknown", each["container"], "-", "-", "-", "not ordered"
        )
    return table


def ledger_table(listing: Any) -> Table:
    table = _table(
        "PROVIDER", "CLASS", "LOSSES", "STALLS", "SLOW STARTS", "HOURS", "LOSSES AN HOUR"
    )
    for provider in listing["providers"]:
        for note in provider["ledger"]:
            table.add_row(
                provider["name"],
                note["node_class"] or "-",
                *(f"{note[name]:.2f}" for name in ("losses", "stalls", "slow_starts", "hours")),
                f"{note['losses_per_hour']:.3f}",
            )
    return table


def _of(count: int, limit: int | None) -> str:
    return str(count) if limit is None else f"{count}/{limit}"


def task_story(task: Any) -> str:
    """A task and its attempts, as lines."""
    lines = [
        f"{task['task_id']}  {task['state']}",
        f"model {task['model']}, tenant {task['tenant']}, accepted {_moment(task['accepted_at'])}",
        f"{task['num_tokens']} tokens, cost {task['charged_cost']}, "
        f"estimated {task['estimated_cost']}",
        f"a lost attempt goes on: {task['resume']}",
    ]
    lines += [
        f"attempt {a['number']} on {a['replica']} of {a['runner']}, {_moment(a['started_at'])}: "
        f"{a['outcome']}{', ' + a['reason'] if a['reason'] else ''}"
        for a in task["attempts"]
    ]
    if task["error"]:
        lines.append(f"error {task['error']['status']}: {task['error']['message']}")
    return "\n".join(lines)


def model_table(listing: Any) -> Table:
    table = _table("MODEL", "TASK", "READY", "STAGES", "CONTEXT", "QUEUED")
    for model in listing["models"]:
        num_ready = sum(replica["state"] == "ready" for replica in model["replicas"])
        table.add_row(
            model["name"],
            model["task"],
            f"{num_ready}/{model['desired_replicas']}",
            str(model["num_stages"]),
            str(model["max_context"]),
            str(model["queued"]),
        )
    return table


def node_table(listing: Any) -> Table:
    """Nodes with their devices, and how busy they are."""
    columns = ("NODE", "STATE", "PROVIDER", "DEVICES", "BUSY", "MEMORY", "TORCHSERVE", "TASKS")
    table = _table(*columns, "HEARD", "VERSION")
    for node in listing["nodes"]:
        state, devices = node["state"], node["state"]["devices"]
        used, total = (
            sum(each[f"memory_{what}_bytes"] for each in devices or [state])
            for what in ("used", "total")
        )
        torchserve, num_restarts = state["torchserve"], state["torchserve"]["num_restarts"]
        restarts = f", {num_restarts} restarts" if num_restarts else ""
        count = f"{node['num_devices']}x " if node["num_devices"] else ""
        table.add_row(
            node["node"],
            "connected" if node["connected"] else "lost",
            " ".join(filter(None, (node["provider"], node["container"]))) or "-",
            f"{count}{node['device_kind'] or 'cpu'}",
            " ".join(_percent(each["busy_ratio"]) for each in devices)
            or _percent(state["cpu_ratio"]),
            f"{used / 2**30:.1f}/{total / 2**30:.1f} GiB" if total else "-",
            f"{torchserve['state']}{restarts}",
            f"{node['in_flight']}/{node['capacity']}",
            _moment(node["heard_at"] or None),
            node["version"] or "-",
        )
    return table


def worker_table(listing: Any) -> Table:
    table = _table("NODE", "REPLICA", "STATE", "IN FLIGHT", "DEVICES", "DETAIL")
    for node in listing["nodes"]:
        name = node["node"] if node["connected"] else f"{node['node']} (lost)"
        for replica in node["replicas"]:
            devices = ",".join(map(str, replica["device_ids"])) or "cpu"
            in_flight = f"{replica['in_flight']}/{replica['capacity']}"
            table.add_row(
                name, replica["name"], replica["state"], in_flight, devices, replica["detail"]
            )
        if not node["replicas"]:
            table.add_row(name, "-", "-", "-", "-", "")
    return table


def download_table(listing: Any) -> Table:
    """What each node has of the models that have to be fetched."""
    table = _table("NODE", "MODEL", "STATE", "HERE", "OF", "MB/S", "DETAIL")
    for node in listing["nodes"]:
        for each in node["holdings"]:
            total = _gigabytes(each["total_bytes"]) if each["total_bytes"] else "-"
            table.add_row(
                node["node"],
                each["model"],
                each["state"],
                _gigabytes(each["held_bytes"]),
                total,
                f"{each['bytes_per_s'] / 1e6:.1f}" if each["bytes_per_s"] else "-",
                each["detail"],
            )
    return table


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB"


def stage_table(listing: Any) -> Table:
    """What each replica's engine tells of its pipeline; replicas that tell nothing are left out."""
    table = _table("REPLICA", "EPOCH", "STAGES", "CUTS", "STEP", "BUBBLE", "BLOCKS", "FAULTS")
    for node in listing["nodes"]:
        for replica in node["replicas"]:
            if engine := replica.get("engine"):
                table.add_row(replica["name"], *_engine_row(engine))
    return table


def _engine_row(engine: Any) -> list[str]:
    plan, blocks = _section(engine, "plan"), _section(engine, "kv")
    stages = engine.get("stages")
    stages = [s for s in stages if isinstance(s, dict)] if isinstance(stages, list) else []
    faults = str(engine.get("num_faults", "-"))
    last = engine.get("last_fault")
    return [
        str(engine.get("epoch", "-")),
        " ".join(f"{stage.get('rank')}:{stage.get('state')}" for stage in stages) or "-",
        _cuts(plan.get("cuts")),
        f"{_times(plan.get('measured_s'))} of {_times(plan.get('predicted_s'))}",
        f"{_percent(plan.get('measured_bubble'))} of {_percent(plan.get('predicted_bubble'))}",
        f"{blocks.get('used', '-')}/{blocks.get('num_blocks', '-')}, "
        f"{blocks.get('cached', '-')} cached",
        f"{faults}, {last}" if last else faults,
    ]


def check_table(listing: Any) -> Table:
    """Every check; what is open stands below it, a line each."""
    table = _table("CHECK", "LOOKS", "FOUND", "REPAIRED", "FAILED", "LAST LOOK")
    for check in listing["checks"]:
        names = ("num_looks", "num_found", "num_repaired", "num_failed")
        counts = [str(check[name]) for name in names]
        table.add_row(check["name"], *counts, _moment(check["looked_at"]))
        for drift in check["open"]:
            table.add_row(f"  {drift['subject']}: {drift['problem']}")
    return table


def bulk_table(listing: Any) -> Table:
    table = _table("BULK", "NAME", "MODEL", "CLASS", "STATE", "INPUTS", "BEGUN")
    for bulk in listing["bulks"]:
        table.add_row(
            bulk["bulk_id"],
            bulk["name"] or "-",
            bulk["model"],
            bulk["class"],
            bulk["state"],
            str(bulk["num_inputs"]),
            _moment(bulk["created_at"]),
        )
    return table


def bulk_story(bulk: Any) -> str:
    """A bulk and how far it is, as lines."""
    counts = ", ".join(f"{n} {state}" for state, n in sorted(bulk["counts"].items())) or "none"
    return "\n".join(
        [
            f"{bulk['bulk_id']}  {bulk['state']}" + (f"  {bulk['name']}" if bulk["name"] else ""),
            f"model {bulk['model']}, class {bulk['class']}, tenant {bulk['tenant']}, "
            f"begun {_moment(bulk['created_at'])}",
            f"{bulk['num_ended']} of {bulk['num_inputs']} inputs have ended: {counts}",
        ]
    )


def explanation_story(told: Any) -> str:
    """Why a task waits and until when, or what its attempts were, as lines."""
    lines = [f"{told['task_id']}  {told['state']}", told["message"]]
    if told["position"] is not None:
        lines.append(f"place {told['position']} among its tenant's tasks")
    lines += [f"- {shortage['message']}" for shortage in told["short"][1:]]
    if told["estimated_start_at"] is not None:
        lines.append(f"starts about {_moment(told['estimated_start_at'])}{_basis(told['basis'])}")
    elif told["why_unknown"]:
        lines.append(f"nobody can tell when it starts: {told['why_unknown']}")
    lines += [
        f"attempt {a['number']} on {a['replica']} of {a['runner']}: waited {a['waited_s']:.1f} s, "
        f"{a['outcome']} after {a['duration_s']:.1f} s with {a['num_tokens']} tokens"
        + (f", {a['reason']}" if a["reason"] else "")
        for a in told["attempts"]
    ]
    lines.append(f"waited {told['waited_s']:.1f} s, worked on {told['worked_s']:.1f} s")
    return "\n".join(lines)


def _basis(basis: Any) -> str:
    if basis is None:
        return ""
    if basis["start_s"] is not None:
        kind = basis["start_kind"] or "its devices"
        starts = f"{basis['num_starts']} starts on {kind}"
        return f" (nine of ten of {starts} took {basis['start_s']:.0f} s at most)"
    if basis["cost_per_s"] is None:
        return ""
    more = "at least " if basis["is_at_least"] else ""
    return (
        f" ({more}{basis['num_tasks_ahead']} tasks of cost {basis['cost_ahead']} ahead, "
        f"{basis['cost_per_s']:.0f} a second, measured for {basis['measured_s']:.0f} s)"
    )


def scale_story(told: Any) -> Table:
    """Why so many replicas of a model run: the last decisions, newest first."""
    rule = told["rule"]
    title = f"{told['model']}: {told['desired_replicas']} replicas, by {told['decided_by']}"
    if rule is not None:
        title += f"; {rule['min']} to {rule['max']} allowed"
    table = _table("SINCE", "LAST", "TIMES", "REPLICAS", "WHY")
    table.title, table.title_justify = title, "left"
    for each in told["decisions"]:
        same = each["num_before"] == each["num_after"]
        table.add_row(
            _moment(each["decided_at"]),
            _moment(each["last_at"]),
            str(each["num_times"]),
            str(each["num_after"]) if same else f"{each['num_before']} to {each['num_after']}",
            f"{each['reason']}: {each['message']}",
        )
    return table


def _section(engine: Any, name: str) -> Any:
    found = engine.get(name)
    return found if isinstance(found, dict) else {}


def _cuts(given: Any) -> str:
    """Layers of each stage, such as ``0-9 10-17``."""
    try:
        return " ".join(f"{start}-{end - 1}" for start, end in given) or "-"
    except (TypeError, ValueError):
        return "-"


def _times(given: Any) -> str:
    """Milliseconds, of one step or of each stage in it."""
    values = given if isinstance(given, list) else [given]
    if not all(isinstance(value, int | float) for value in values):
        return "-"
    return "+".join(f"{value * 1000:.1f}" for value in values) + " ms"


def _percent(given: Any) -> str:
    return f"{given:.0%}" if isinstance(given, int | float) else "-"


def _moment(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return datetime.datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")
