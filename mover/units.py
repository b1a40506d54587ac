"""Sizes and durations as people write them, and back."""

from __future__ import annotations

import re

KiB = 1 << 10
MiB = 1 << 20
GiB = 1 << 30
TiB = 1 << 40

_SIZE_UNITS = {"": 1, "B": 1, "KiB": KiB, "MiB": MiB, "GiB": GiB, "TiB": TiB}
_DURATION_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}
_NUMBER = re.compile(r"(\d{1,15}(?:\.\d{1,3})?)\s*([A-Za-z]*)")


def parse_size(text: str | int) -> int:
    """`"64KiB"`, `"1.5GiB"`, `"0"` or a number: bytes. Raises `ValueError` saying what is allowed."""
    if isinstance(text, int):
        return text
    number, unit = _split(text)
    if unit not in _SIZE_UNITS:
        raise ValueError(f'a size is bytes or has a unit of {", ".join(filter(None, _SIZE_UNITS))}, as in "64KiB"')
    size = number * _SIZE_UNITS[unit]
    if size != int(size):
        raise ValueError("a size is a whole number of bytes")
    return int(size)


def parse_duration(text: str | int) -> float:
    """`"30s"`, `"10m"`, `"7d"` or a number of seconds: seconds. Raises `ValueError` saying what is allowed."""
    if isinstance(text, int):
        return float(text)
    number, unit = _split(text)
    if unit not in _DURATION_UNITS:
        raise ValueError(f'a duration has a unit of {", ".join(_DURATION_UNITS)}, as in "30s"')
    return number * _DURATION_UNITS[unit]


def _split(text: str) -> tuple[float, str]:
    match = _NUMBER.fullmatch(text.strip())
    if match is None:
        raise ValueError("a number is expected, with a unit")
    return float(match[1]), match[2]


def format_size(size: float) -> str:
    """Bytes in binary units, three digits: `1.25 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.4g} TiB"


def format_rate(size: float, seconds: float) -> str:
    """Bytes in some seconds as decimal megabytes a second: `412 MB/s`."""
    return f"{size / max(seconds, 1e-9) / 1e6:.0f} MB/s"


def format_duration(seconds: float) -> str:
    """Seconds as `0:07` or `1:02:03`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
