"""In whose name, where and under which task a call is carried out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Context:
    """`host` is the reference of the host that was asked; `task` is set in asynchronous calls."""

    session: str
    host: str
    method: str
    task: str | None = None
