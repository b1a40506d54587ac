"""The bars of `--quick`: what small inputs reach, less what machines differ by.

On small inputs what is fixed weighs more, and some bars are out of reach on two cores (docs/performance.md). Held to
them, a quick run would end the same whether or not something has become slower. So where a figure of a quick run is
near its bar or below it, it is held to about seven tenths of the least that it was on a good day. All others have the
bar that they have in full, which no quick run replaces.
"""

from __future__ import annotations

from bench.measure import Check

# Scenario and figure.
FLOORS = {
    ("full", "times as fast as zstd -1 -T2"): 0.65,
    ("full", "times as fast as qemu-img convert -c"): 1.1,
    ("full", "times as fast as borg"): 1.5,
    ("full", "times as fast as restic"): 2.4,
    ("tls", "TLS / plain"): 0.28,
    ("tls", "an unchanged disk: TLS / plain"): 0.36,
    ("restore", "times as fast as qemu-img convert from qcow2"): 0.6,
    ("http", "times as fast as NBD"): 0.55,
    ("many", "VMs a second"): 7.0,
}


def lowered(scenario: str, check: Check) -> Check:
    """The check as a quick run has it."""
    return check._replace(bar=FLOORS.get((scenario, check.name), check.bar))
