"""What the store holds of nodes: who has registered, what each is to run, and which control plane
decides that. Values of one row each; what is a list or a record in them is JSON here."""

from __future__ import annotations

from scheduler.records import Record


class Registration(Record, frozen=True):
    """A runner with its node, as the control plane that has its stream last wrote it."""

    runner_id: str
    #: Grows with each stream that the runner opens, at any control plane; what was heard on an
    #: earlier one is not written any more.
    fence: int
    #: The control plane that has the stream, or had it last.
    control_plane: str
    #: Whether that is open, as far as that control plane knows.
    is_connected: bool
    #: When it was opened, in seconds since the epoch.
    connected_at: float
    #: When the runner last said something, a few seconds late.
    heard_at: float
    #: Name of the machine in listings.
    node: str
    #: The machine's own name for itself.
    host: str = ""
    #: Who rents us the container it is in; empty: nobody does.
    provider: str = ""
    #: What the provider calls that container; empty: it did not say.
    container: str = ""
    #: Version of Plait that it is.
    version: str = ""
    #: Accelerators it has; 0 on a CPU node.
    num_devices: int = 0
    #: What they are, such as ``cpu`` or a product name.
    device_kind: str = ""
    #: Models it has a config of, JSON list.
    models: str = "[]"
    #: Its replicas with their states, JSON list.
    replicas: str = "[]"
    #: Use of its devices, processors and memory, and its TorchServe, JSON; empty: it did not say.
    state: str = ""
    #: What it has of models' files, JSON list.
    holdings: str = "[]"


class Placement(Record, frozen=True):
    """What a runner is to run."""

    runner_id: str
    #: The leader's epoch in which it was decided.
    epoch: int
    #: The replicas with their devices, JSON list.
    replicas: str


class Leadership(Record, frozen=True):
    """Which control plane decides for all of them."""

    #: What is decided: ``sidecar``.
    role: str
    #: The control plane that decides; empty: none, the last one has resigned.
    holder: str = ""
    #: Grows whenever another takes over; what was decided in an earlier one is not written.
    epoch: int = 0
    #: Grows as long as the holder lives.
    num_beats: int = 0
