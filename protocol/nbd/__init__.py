"""NBD: reading disks from the hosts of a pool (`open_reader`).

The names are imported when they are used: the client needs libnbd, the server beside it does not.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from protocol.nbd.budget import Budget
    from protocol.nbd.connection import Connection, connect
    from protocol.nbd.endpoint import Endpoint, Timeouts
    from protocol.nbd.plan import Observed, Planner, Request
    from protocol.nbd.reader import NbdReader, open_reader
    from protocol.nbd.terms import Patience, ReadStats, Retry

__all__ = [
    "Budget",
    "Connection",
    "Endpoint",
    "NbdReader",
    "Observed",
    "Patience",
    "Planner",
    "ReadStats",
    "Request",
    "Retry",
    "Timeouts",
    "connect",
    "open_reader",
]

_HOME = {
    "Budget": "budget",
    "Connection": "connection",
    "connect": "connection",
    "Endpoint": "endpoint",
    "Timeouts": "endpoint",
    "Observed": "plan",
    "Planner": "plan",
    "Request": "plan",
    "Patience": "terms",
    "ReadStats": "terms",
    "Retry": "terms",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME.get(name, 'reader')}"), name)
