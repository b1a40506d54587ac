"""Which network of the target pool stands in for each saved one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mover.errors import NotFoundError

Record = dict[str, Any]


def match_networks(
    saved: Mapping[str, Record],
    saved_pifs: Mapping[str, Record],
    present: Mapping[str, Record],
    present_pifs: Mapping[str, Record],
    wanted: Mapping[str, str],
) -> dict[str, str]:
    """Map saved network refs to refs of `present`: as `wanted` says, else by UUID, else by name and VLAN.

    `wanted` maps a saved network's name or UUID to the name or UUID of a present one. Raises `NotFoundError` naming
    every network that has no match, or every wish that is about none, before anything is written.
    """
    _refuse_idle(saved, wanted)
    matched: dict[str, str] = {}
    missing: list[str] = []
    for ref, network in saved.items():
        asked = wanted.get(network["uuid"]) or wanted.get(network["name_label"])
        found = (
            _by_name_or_uuid(present, asked)
            if asked
            else _by_name_or_uuid(present, network["uuid"]) or _by_vlan(network, saved_pifs, present, present_pifs)
        )
        if found is None:
            missing.append(asked or network["name_label"])
        else:
            matched[ref] = found
    if missing:
        names = ", ".join(sorted(record["name_label"] for record in present.values()))
        raise NotFoundError(
            f"the pool has no network for {', '.join(sorted(missing))}",
            f"name one with --network OLD=NEW; the pool has {names}",
        )
    return matched


def _refuse_idle(saved: Mapping[str, Record], wanted: Mapping[str, str]) -> None:
    """A wish that is misspelt must not end in the VM being where it was."""
    known = {name for network in saved.values() for name in (network["uuid"], network["name_label"])}
    if idle := sorted(wanted.keys() - known):
        names = ", ".join(sorted(network["name_label"] for network in saved.values())) or "none"
        raise NotFoundError(f"the VM was on no network {', '.join(idle)}", f"its networks were: {names}")


def _by_name_or_uuid(present: Mapping[str, Record], name: str) -> str | None:
    for ref, record in present.items():
        if name == record["uuid"]:
            return ref
    named = [ref for ref, record in present.items() if name == record["name_label"]]
    if len(named) > 1:
        uuids = ", ".join(sorted(present[ref]["uuid"] for ref in named))
        raise NotFoundError(f"the pool has {len(named)} networks called {name}", f"name one by its UUID: {uuids}")
    return named[0] if named else None


def _by_vlan(
    network: Record, saved_pifs: Mapping[str, Record], present: Mapping[str, Record], pifs: Mapping[str, Record]
) -> str | None:
    vlans = _vlans(network, saved_pifs)
    for ref, record in present.items():
        if record["name_label"] == network["name_label"] and _vlans(record, pifs) == vlans:
            return ref
    return None


def _vlans(network: Record, pifs: Mapping[str, Record]) -> frozenset[int]:
    return frozenset(int(pifs[pif]["VLAN"]) for pif in network["PIFs"] if pif in pifs)
