"""A whole cluster in one thread, from one seed, in virtual time: what Plait promises, under faults.

The rules that run are the real ones: the moves over a real in-memory database, task book, ledger,
dispatcher and runner core. Simulated is what surrounds them: time, network, disk, processes, models
and tenants; and all of it fails. ``docs/design/0001-simulated-cluster.md`` says how, and what each
check is; ``python -m scheduler.testing.simulation --help`` runs it.
"""
