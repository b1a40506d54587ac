"""Sizes and durations as people write them, and back."""

from __future__ import annotations

import re
from decimal import Decimal

KiB = 1 << 10
MiB = 1 << 20
GiB = 1 << 30
TiB = 1 << 40

_SIZE_UNITS = {"": 1, "B": 1, "KiB": KiB, "MiB": MiB, "GiB": GiB, "TiB": TiB}
_DURATION_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_NUMBER = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,3})?)\s*([A-Za-z]*)")

# Larger numbers are typing errors, and would not fit where sizes and times go.
MAX_SIZE = 1 << 60
MAX_DURATION = 1e9


def parse_size(text: str | int) -> int:
    """`"64KiB"`, `"1.5GiB"`, `"0"` or a number: bytes. Raises `ValueError` saying what is allowed."""
    if isinstance(text, int):
        size: Decimal | int = text
    else:
        number, unit = _split(text)
        if unit not in _SIZE_UNITS:
            raise ValueError(f'a size is bytes or has a unit of {", ".join(filter(None, _SIZE_UNITS))}, as in "64KiB"')
        size = number * _SIZE_UNITS[unit]
    if size != int(size):
        raise ValueError("a size is a whole number of bytes")
    if not 0 <= size <= MAX_SIZE:
        raise ValueError(f"a size is from 0 to {format_size(MAX_SIZE)}")
    return int(size)


def parse_duration(text: str | int) -> float:
    """`"30s"`, `"10m"`, `"7d"` or a number of seconds: seconds. Raises `ValueError` saying what is allowed."""
    if isinstance(text, int):
        seconds: Decimal | int = text
    else:
        number, unit = _split(text)
        if unit not in _DURATION_UNITS:
            raise ValueError(f'a duration has a unit of {", ".join(_DURATION_UNITS)}, as in "30s"')
        seconds = number * _DURATION_UNITS[unit]
    if not 0 <= seconds <= MAX_DURATION:
        raise ValueError("a duration is from 0s to about 30 years")
    return float(seconds)


def _split(text: str) -> tuple[Decimal, str]:
    match = _NUMBER.fullmatch(text.strip())
    if match is None:
        raise ValueError("a number is expected, with a unit")
    return Decimal(match[1]), match[2]


def format_size(size: float) -> str:
    """Bytes in binary units, three digits or what is below 1024: `1.25 GiB`, `1010 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1023.5:
            return f"{size:.3g} {unit}" if size < 999.5 and unit != "B" else f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.4g} TiB" if size < 9999.5 else f"{size:.0f} TiB"


def format_rate(size: float, seconds: float) -> str:
    """Bytes in some seconds as decimal megabytes a second: `412 MB/s`."""
    return f"{size / max(seconds, 1e-9) / 1e6:.0f} MB/s"


def format_duration(seconds: float) -> str:
    """Seconds as `0:07` or `1:02:03`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
