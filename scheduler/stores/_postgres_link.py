"""Sessions with a PostgreSQL server: how they are set up, and how one comes back after it was lost.

A store opens a session when it has something to do, and opens another after that one broke. While
the server refuses, attempts are made at growing intervals, and whoever calls in between is refused
at once instead of waiting for a connection that will not come.
"""

from __future__ import annotations

from typing import Any, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict

from scheduler.clock import Clock
from scheduler.errors import StartupError, StoreUnavailable
from scheduler.stores._postgres_wire import Wire

#: Seconds until another attempt to connect, at first and at most.
FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 2.0

#: What the URL may say otherwise. A server that has gone without a word is noticed in seconds.
_PARAMETERS: Final = {
    "application_name": "plait",
    "client_encoding": "utf8",
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
_SETTINGS: Final = {
    # Every statement is one look-up in an index. Its plan is made once, and must not be the scan
    # that fitted while the table was empty.
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "jit": "off",
    # A control plane that stands still in the middle of a batch must not hold up the others.
    "idle_in_transaction_session_timeout": "10s",
    "lock_timeout": "15s",
}
#: What was answered survives a power cut, whatever the server does for others.
_DURABLE: Final = (
    "SELECT set_config('synchronous_commit', 'on', false)"
    " WHERE current_setting('synchronous_commit') = 'off'"
)


def parameters(url: str) -> dict[str, Any]:
    """What a URL says, and what it leaves to us.

    Raises:
        StartupError: it cannot be understood; the message does not repeat it, for it may hold a
            password.
    """
    try:
        return {**_PARAMETERS, **conninfo_to_dict(url)}
    except psycopg.ProgrammingError:
        message = "the setting store is no postgresql:// URL that can be understood"
        raise StartupError(message) from None


def name_of(url: str) -> str:
    """A database as messages and logs call it: where it is, not who may open it."""
    known = parameters(url)
    host, port = known.get("host", "localhost"), known.get("port", "5432")
    return f"postgresql://{host}:{port}/{known.get('dbname', '')}"


def connect(url: str) -> Wire:
    """A session for the statements.

    Raises:
        psycopg.OperationalError: the server cannot be reached, or refuses.
    """
    connection = psycopg.connect(**parameters(url), autocommit=True)
    names = ", ".join(f"set_config('{name}', %s, false)" for name in _SETTINGS)
    connection.execute(f"SELECT {names}", list(_SETTINGS.values()))
    connection.execute(_DURABLE)
    return Wire(connection)


class Link:
    """A session that is opened when it is needed and again after it was lost."""

    def __init__(self, url: str, clock: Clock) -> None:
        self._url, self._clock = url, clock
        self._wire: Wire | None = None
        self._pause_s = FIRST_PAUSE_S
        self._retry_at = clock.monotonic()

    def wire(self) -> Wire:
        """The session: another one than before, if that was lost.

        Raises:
            StoreUnavailable: there is none, and there will be none for a moment.
        """
        if self._wire is None or not self._wire.is_open:
            self.close()
            self._wire = self._open()
        return self._wire

    def close(self) -> None:
        """End the session; the next call opens another."""
        if self._wire is not None:
            self._wire.close()
            self._wire = None

    def _open(self) -> Wire:
        if self._clock.monotonic() < self._retry_at:
            raise StoreUnavailable("the store cannot be reached; another attempt is made shortly")
        try:
            wire = connect(self._url)
        except psycopg.Error as error:
            self._retry_at = self._clock.monotonic() + self._pause_s
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
            raise StoreUnavailable(f"the store cannot be reached: {error}") from error
        self._pause_s = FIRST_PAUSE_S
        return wire
