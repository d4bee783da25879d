"""What is kept of a run: its figures as JSON, a picture of it, and the tables of a page.

The history itself, hundreds of thousands of records, is not kept.
"""

from __future__ import annotations

import json
import math
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import psutil

from scheduler.testing.chaos.history import Fault, History, Read, Refused, Sample, Seen, Sent
from scheduler.testing.chaos.recovery import figures, middle_and_tail

#: Between these, with the name of what is kept, a page has the tables.
BEGIN: Final = "<!-- {} written by make chaos: begin -->"
END: Final = "<!-- {} written by make chaos: end -->"
#: Seconds that one point of the picture stands for.
BUCKET_S: Final = 5.0


def summary(history: History, problems: Sequence[str], **about: object) -> dict[str, Any]:
    """A run in figures; ``about`` says what was run."""
    ends = [record for record in history.records if isinstance(record, Seen) and record.is_end]
    sent = [record for record in history.records if isinstance(record, Sent)]
    faults = [record for record in history.records if isinstance(record, Fault)]
    lost = Counter(attempt.outcome for attempt in history.stored.attempts)
    first = {record.key: record.at for record in reversed(sent)}
    durations = [end.at - first[end.reader] for end in ends]
    return {
        **about,
        "machine": f"{psutil.cpu_count()} cores, {platform.machine()}, {platform.system()}",
        "num_faults": len(faults),
        "kinds": dict(sorted(Counter(fault.kind for fault in faults).items())),
        "num_sent": len(sent),
        "tasks": dict(Counter(task.state for task in history.stored.tasks)),
        "attempts": dict(lost),
        "num_chunks_read": sum(isinstance(record, Read) for record in history.records),
        "refusals": _by_status(history),
        "sent_to_end_s": middle_and_tail(durations),
        "problems": list(problems),
        "recovery": [asdict(each) for each in figures(history)],
        "bucket_s": BUCKET_S,
        "series": _series(history, sent, ends),
        "faults": [
            [round(fault.at, 1), round(fault.until, 1), fault.kind, fault.target]
            for fault in sorted(faults, key=lambda fault: fault.at)
        ],
    }


def _by_status(history: History) -> dict[str, int]:
    refused = (record for record in history.records if isinstance(record, Refused))
    counts = Counter(str(record.status or "no answer") for record in refused)
    return dict(sorted(counts.items()))


def _series(history: History, sent: Sequence[Sent], ends: Sequence[Seen]) -> dict[str, Any]:
    samples = [record for record in history.records if isinstance(record, Sample)]
    last_s = max((sample.at for sample in samples), default=0.0)
    count = math.floor(last_s / BUCKET_S) + 1
    tokens = (record.at for record in history.records if isinstance(record, Read))
    series: dict[str, Any] = {
        "sent_per_s": _rate((record.at for record in sent), count),
        "ended_per_s": _rate((record.at for record in ends), count),
        "tokens_per_s": _rate(tokens, count),
    }
    fields: dict[str, Callable[[Sample], float | None]] = {
        "runners_connected": lambda sample: sample.num_connected,
        "replicas_ready": lambda sample: sample.num_ready,
        "tasks_queued": lambda sample: sample.num_queued,
        "tasks_in_flight": lambda sample: sample.num_in_flight,
        "nodes_whole": lambda sample: sample.num_whole_nodes,
        "control_plane_up": lambda sample: float(sample.num_connected is not None),
    }
    for name, field in fields.items():
        series[name] = _mean(((sample.at, field(sample)) for sample in samples), count)
    return series


def _rate(moments: Iterable[float], count: int) -> list[float]:
    places = Counter(math.floor(moment / BUCKET_S) for moment in moments)
    return [round(places[place] / BUCKET_S, 2) for place in range(count)]


def _mean(values: Iterable[tuple[float, float | None]], count: int) -> list[float | None]:
    """Mean of each bucket; None where nothing is known."""
    buckets: list[list[float]] = [[] for _ in range(count)]
    for at, value in values:
        if value is not None:
            buckets[math.floor(at / BUCKET_S)].append(value)
    return [round(sum(each) / len(each), 2) if each else None for each in buckets]


def tables(document: Mapping[str, Any]) -> str:
    """The summary and the recovery figures, in Markdown."""
    tasks = ", ".join(f"{count} {state}" for state, count in sorted(document["tasks"].items()))
    attempts = ", ".join(f"{n} {outcome}" for outcome, n in sorted(document["attempts"].items()))
    refusals = ", ".join(f"{n} × {status}" for status, n in document["refusals"].items())
    middle, tail = document["sent_to_end_s"]
    rows = [
        ("seed", document["seed"]),
        ("machine", document["machine"]),
        ("nodes", f"{document['nodes']}, each {document['node']}"),
        ("with faults for", f"{document['minutes']:g} minutes"),
        ("faults", f"{document['num_faults']} of {len(document['kinds'])} kinds"),
        ("tasks sent", document["num_sent"]),
        ("tasks at the end", tasks),
        ("attempts", attempts),
        ("chunks read by clients", document["num_chunks_read"]),
        ("submissions to be repeated", refusals or "none"),
        ("from sent to end", f"p50 {middle:.1f} s, p99 {tail:.1f} s"),
        ("promises broken", len(document["problems"]) or "none"),
    ]
    lines = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows), ""]
    lines += [
        "| fault | times | lasted | tasks hit | detected after | next token after "
        "| and after it was over | tokens computed again |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for each in document["recovery"]:
        cells = [_pair(each[name]) for name in ("lasted_s", "detection_s", "next_token_s")]
        cells.insert(1, str(each["num_hits"]))
        again = [_pair(each["after_end_s"]), _pair(each["recomputed"], "{:.0f}", "")]
        lines.append(
            f"| {each['kind']} | {each['num_faults']} | " + " | ".join(cells + again) + " |"
        )
    return "\n".join(lines) + "\n"


def _pair(pair: Sequence[float] | None, form: str = "{:.1f}", unit: str = " s") -> str:
    """Median and 99th percentile."""
    if pair is None:
        return "-"
    return f"{form.format(pair[0])} / {form.format(pair[1])}{unit}"


def keep(document: Mapping[str, Any], folder: Path, name: str) -> None:
    """Write ``<name>.json`` and ``<name>.svg``, and the tables into the pages that want them."""
    from scheduler.testing.chaos.picture import draw

    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(_to_json(document), "utf-8")
    draw(document, folder / f"{name}.svg")
    for page in folder.glob("*.md"):
        text = page.read_text("utf-8")
        if BEGIN.format(name) in text:
            page.write_text(with_tables(text, document, name), "utf-8")


def with_tables(page: str, document: Mapping[str, Any], name: str) -> str:
    """The page with the tables of ``document`` in the place of what was there."""
    begin, end = BEGIN.format(name), END.format(name)
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n\n{tables(document)}\n{end}{after}"


def _to_json(document: Mapping[str, Any]) -> str:
    """A line for each entry: a change of one shows as a change of one."""
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in document.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"
