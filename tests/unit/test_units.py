"""Sizes, durations and rates, as they are read and as they are shown."""

import pytest

from mover.units import format_duration, format_rate, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        (65536, 65536),
        ("65536", 65536),
        ("64KiB", 65536),
        (" 4 MiB ", 4 << 20),
        ("1.5GiB", 3 << 29),
        ("2TiB", 2 << 40),
        ("0.125KiB", 128),
    ],
)
def test_sizes(text: str | int, size: int):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30.0), ("10m", 600.0), ("7d", 604800.0), ("2h", 7200.0), ("1w", 604800.0), ("0.5s", 0.5), (60, 60.0)],
)
def test_durations(text: str | int, seconds: float):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("64kb", "KiB, MiB"),
        ("64KB", "KiB, MiB"),
        ("0.3B", "whole number"),
        ("-1", "a number is expected"),
        ("1e3", "a number is expected"),
        ("", "a number is expected"),
        ("\N{ARABIC-INDIC DIGIT THREE}KiB", "a number is expected"),
        (-1, "from 0"),
        ("999999999999999TiB", "from 0 to"),
        (1 << 70, "from 0 to"),
    ],
)
def test_what_is_no_size_says_what_is_allowed(text: str | int, allowed: str):
    with pytest.raises(ValueError, match=allowed):
        parse_size(text)


@pytest.mark.parametrize("text", ["10", "10ms", "1M", "", "s", -1, 10**400, "999999999999999w"])
def test_what_is_no_duration(text: str | int):
    with pytest.raises(ValueError, match=r"duration|number"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (1000 << 10, "1000 KiB"),
        ((1 << 20) - 1, "1 MiB"),
        (5 << 28, "1.25 GiB"),
        (1 << 40, "1 TiB"),
        (1234 << 40, "1234 TiB"),
        (123456 << 40, "123456 TiB"),
    ],
)
def test_shown_sizes(size: int, text: str):
    assert format_size(size) == text


def test_shown_rates_are_decimal_and_durations_are_clocks():
    assert format_rate(412_000_000, 1.0) == "412 MB/s"
    assert format_rate(0, 0.0) == "0 MB/s"
    assert [format_duration(seconds) for seconds in (6.6, 59.7, 3723, 90000)] == ["0:07", "1:00", "1:02:03", "25:00:00"]
