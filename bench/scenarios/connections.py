"""A server that answers one request at a time on each connection, after 5 ms: what more connections and hosts give."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from bench.child import call
from bench.measure import Case, Check, MiB, Sample, interleave, ratio, seconds_of
from bench.registry import Scenario, Setting
from bench.servers import nbdkit, relay
from protocol.nbd.terms import Patience

_DELAYED = ("--filter=noparallel", "--filter=delay", "file")
_EACH = ("rdelay=5ms", "serialize=requests")
_PATIENCE = Patience().stall
_ALL = ("rdelay=5ms", "serialize=all-requests")


def run_connections(setting: Setting) -> Iterator[Case]:
    """8 connections against 1, in requests as long as ours are, and in shorter ones.

    Of the longer ones, eight connections bring more than two cores can receive that also run the server, and a small
    image has too few for connecting not to count.
    """
    for longest in (MiB // 2,) if setting.small else (2 * MiB, MiB // 2):
        yield _connections(setting, longest)


def _connections(setting: Setting, longest: int) -> Case:
    image = setting.image()
    case = Case(f"8 connections and 1, requests of {longest >> 10} KiB")
    with nbdkit(*_DELAYED, str(image), *_EACH) as port:
        place = {"ports": [port]}
        samples = interleave(
            setting.rounds,
            {
                "8": lambda: call("read", place=place, connections=8, longest=longest),
                "1": lambda: call("read", place=place, connections=1, longest=longest),
            },
            warm_up=False,
        )
        case.failures += call("read_and_compare", place=place, image=str(image), connections=8).facts["failures"]
    case.series = seconds_of(samples)
    case.checks.append(Check("8 connections / 1", ratio(case.series["1"], case.series["8"]), 7.0, unit="x"))
    case.check_rss(samples["8"])
    return case


def run_hosts(setting: Setting) -> Iterator[Case]:
    """Two hosts that each answer one request at a time over all connections, against one of them."""
    image = setting.image()
    case = Case("two hosts and one")
    with nbdkit(*_DELAYED, str(image), *_ALL) as first, nbdkit(*_DELAYED, str(image), *_ALL) as second:
        both, one = {"ports": [first, second]}, {"ports": [first]}
        samples = interleave(
            setting.rounds,
            {"two": lambda: call("read", place=both), "one": lambda: call("read", place=one)},
            warm_up=False,
        )
        case.failures += call("read_and_compare", place=both, image=str(image)).facts["failures"]
    case.series = seconds_of(samples)
    case.checks.append(Check("two hosts / one", ratio(case.series["one"], case.series["two"]), 1.9, unit="x"))
    case.check_rss(samples["two"])
    yield case


def run_stalled(setting: Setting) -> Iterator[Case]:
    """Four connections of which one stops answering early on, against four that answer.

    Its share is a quarter of the speed, and once a run the second after which a request counts as stalled. The server
    serves each connection one request at a time, so that the others cannot make up for it.
    """
    image = setting.image()
    case = Case("four connections of which one stalls")
    with nbdkit(*_DELAYED, str(image), *_EACH) as port:

        def through(stalled: int | None) -> Sample:
            with relay(port, stalled, after=image.stat().st_size // 32) as between:
                return call("read", place={"ports": [between]}, connections=4)

        samples = interleave(setting.rounds, {"one stalls": lambda: through(2), "none": lambda: through(None)})
        with relay(port, 2, after=image.stat().st_size // 32) as between:
            found = call("read_and_compare", place={"ports": [between]}, image=str(image), connections=4)
        case.failures += found.facts["failures"]
    case.series = seconds_of(samples)
    pairs = zip(case.series["one stalls"], case.series["none"], strict=True)
    beyond = statistics.median(stalled - without * 4 / 3 for stalled, without in pairs)
    # Only what is the very last is asked for again, after a second without an answer.
    case.checks.append(Check("seconds beyond its share", beyond, _PATIENCE + 0.25, "at most", "s"))
    case.checks.append(Check("time / without a stall", ratio(case.series["one stalls"], case.series["none"]), unit="x"))
    case.check_rss(samples["one stalls"])
    yield case


SCENARIOS = (
    Scenario("connections", "one request at a time, 5 ms each: 8 connections beside 1", run_connections),
    Scenario("hosts", "two hosts that answer one request at a time, beside one", run_hosts, quick=False),
    Scenario("stalled", "one of four connections stops answering", run_stalled, quick=False),
)
