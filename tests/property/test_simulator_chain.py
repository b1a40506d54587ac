"""The simulator's disks and CBT logs against plain bytes and sets of granules."""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mover.simulator.storage import Disks, StorageError

GRANULE = 64 << 10
SIZE = 12 * GRANULE
LIVE = "live"


def bits(bitmap: bytes) -> set[int]:
    return {n for n in range(len(bitmap) * 8) if bitmap[n // 8] & (0x80 >> n % 8)}


class Chains(RuleBasedStateMachine):
    """A live disk, its snapshots and clones; every state is known as bytes."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self.disks = Disks(Path(self._folder.name))
        self.disks.create(LIVE, SIZE)
        self.disks.enable_cbt(LIVE)
        self.content: dict[str, bytes] = {LIVE: bytes(SIZE)}
        self.order: list[str] = []  # tracked snapshots, oldest first
        self.written: list[set[int]] = []  # granules written before each of them, and at last since the newest
        self.since: set[int] = set()
        self.made = 0
        self.killed: list[Disks] = []

    def teardown(self) -> None:
        for disks in [*self.killed, self.disks]:
            disks.close()
        self._folder.cleanup()

    @rule(offset=st.integers(0, SIZE - 1), length=st.integers(1, 3 * GRANULE), fill=st.integers(0, 3))
    def write(self, offset: int, length: int, fill: int) -> None:
        size = len(self.content[LIVE])
        length = min(length, size - offset)
        self.disks.write(LIVE, offset, bytes([fill]) * length)
        content = bytearray(self.content[LIVE])
        content[offset : offset + length] = bytes([fill]) * length
        self.content[LIVE] = bytes(content)
        self.since |= set(range(offset // GRANULE, -(-(offset + length) // GRANULE)))

    @rule()
    def snapshot(self) -> None:
        self.made += 1
        name = f"snapshot-{self.made}"
        try:
            self.disks.snapshot(LIVE, name)
        except StorageError as error:
            assert error.code == 109
            return
        self.content[name] = self.content[LIVE]
        self.order.append(name)
        self.written.append(self.since)
        self.since = set()

    @precondition(lambda self: self.order)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.order))
        at = self.order.index(name)
        del self.order[at]
        gone = self.written.pop(at)
        if at < len(self.written):
            self.written[at] |= gone
        else:
            self.since |= gone
        self.delete_under_a_reader(name)

    @precondition(lambda self: self.clones())
    @rule(data=st.data())
    def delete_clone(self, data: st.DataObject) -> None:
        self.delete_under_a_reader(data.draw(st.sampled_from(self.clones())))

    def clones(self) -> list[str]:
        return sorted(self.content.keys() - {LIVE} - set(self.order))

    def delete_under_a_reader(self, name: str) -> None:
        """Whoever has begun to read goes on to see the disk as it was, whatever happens to the others."""
        content = self.content.pop(name, None)
        if content is None:
            self.disks.delete(name)
            return
        with self.disks.pinned():
            runs = list(self.disks.runs(name, 0, len(content)))
            self.disks.delete(name)
            self.snapshot()
            parts = [
                bytes(run.length) if run.fd is None else os.pread(run.fd, run.length, run.file_offset) for run in runs
            ]
        assert b"".join(parts) == content

    @precondition(lambda self: self.order)
    @rule(data=st.data())
    def destroy_data(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.order))
        self.disks.data_destroy(name)
        self.content.pop(name, None)

    @rule(more=st.sampled_from([0, 1, GRANULE - 1, GRANULE, 2 * GRANULE + 7]))
    def grow(self, more: int) -> None:
        size = len(self.content[LIVE]) + more
        self.disks.resize(LIVE, size)
        self.content[LIVE] = self.content[LIVE].ljust(size, b"\0")

    @rule(data=st.data(), fill=st.integers(1, 9))
    def clone(self, data: st.DataObject, fill: int) -> None:
        source = data.draw(st.sampled_from(sorted(self.content)))
        self.made += 1
        name = f"clone-{self.made}"
        try:
            self.disks.clone(source, name)
        except StorageError as error:
            assert error.code == 109
            return
        self.disks.write(name, 100, bytes([fill]) * 200)
        content = bytearray(self.content[source])
        content[100:300] = bytes([fill]) * 200
        self.content[name] = bytes(content)
        assert not self.disks.cbt_enabled(name)

    @rule(killed=st.booleans())
    def restart(self, killed: bool) -> None:
        if killed:
            self.killed.append(self.disks)
        else:
            self.disks.close()
        self.disks = Disks(Path(self._folder.name))

    @invariant()
    def every_disk_reads_back(self) -> None:
        for name, content in self.content.items():
            assert self.disks.size(name) == len(content)
            assert self.disks.read(name, 0, len(content)) == content

    @invariant()
    def logs_name_what_was_written_in_between(self) -> None:
        for older in range(len(self.order)):
            expected: set[int] = set()
            for newer in range(older + 1, len(self.order)):
                expected |= self.written[newer]
                assert bits(self.disks.changed_blocks(self.order[older], self.order[newer])) == expected
            assert bits(self.disks.changed_blocks(self.order[older], LIVE)) == expected | self.since


TestChains = Chains.TestCase
TestChains.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


@pytest.fixture
def disks(tmp_path: Path) -> Disks:
    disks = Disks(tmp_path)
    disks.create(LIVE, SIZE)
    disks.enable_cbt(LIVE)
    disks.snapshot(LIVE, "a")
    disks.snapshot(LIVE, "b")
    return disks


@pytest.mark.parametrize(("older", "newer"), [("b", "a"), ("a", "a"), ("a", "other"), ("other", "a")])
def test_disks_that_are_not_in_one_chain_are_refused(disks: Disks, older: str, newer: str):
    disks.create("other", SIZE)
    disks.enable_cbt("other")
    with pytest.raises(StorageError) as caught:
        disks.changed_blocks(older, newer)
    assert caught.value.code == 460


def test_a_disk_that_grew_is_no_excuse_for_another_error(disks: Disks):
    disks.create("other", GRANULE)
    disks.enable_cbt("other")
    disks.resize(LIVE, 2 * SIZE)
    disks.snapshot(LIVE, "c")
    for older, newer in [("a", "other"), ("b", "a"), ("c", "a")]:
        with pytest.raises(StorageError) as caught:
            disks.changed_blocks(older, newer)
        assert caught.value.code == 460


def test_switching_cbt_off_cuts_the_chain_for_good(disks: Disks):
    disks.disable_cbt(LIVE)
    disks.enable_cbt(LIVE)
    assert disks.cbt_enabled("b")
    assert bits(disks.changed_blocks("a", "b")) == set()
    with pytest.raises(StorageError):
        disks.changed_blocks("b", LIVE)


def test_destroying_the_data_keeps_the_log(disks: Disks):
    disks.data_destroy("a")
    disks.write(LIVE, 5 * GRANULE, b"x")
    assert bits(disks.changed_blocks("a", LIVE)) == {5}
    with pytest.raises(StorageError):
        disks.read("a", 0, 1)


def test_a_chain_cannot_grow_for_ever(tmp_path: Path):
    disks = Disks(tmp_path)
    disks.create(LIVE, SIZE)
    with pytest.raises(StorageError) as caught:
        for number in range(40):
            disks.write(LIVE, 0, bytes([number]))
            disks.snapshot(LIVE, f"s{number}")
    assert caught.value.code == 109
    assert disks.chain_depth(LIVE) == 30


def test_deleting_snapshots_coalesces_the_chain(tmp_path: Path):
    disks = Disks(tmp_path)
    disks.create(LIVE, SIZE)
    for number in range(100):
        disks.write(LIVE, number % 12 * GRANULE, bytes([number]) * 10)
        disks.snapshot(LIVE, f"s{number}")
        if number:
            disks.delete(f"s{number - 1}")
    assert disks.chain_depth(LIVE) <= 3
    assert disks.read(LIVE, 99 % 12 * GRANULE, 10) == bytes([99]) * 10


def test_a_disk_of_a_tebibyte_costs_what_is_in_it(tmp_path: Path):
    disks = Disks(tmp_path)
    disks.create(LIVE, 1 << 40)
    disks.write(LIVE, (1 << 40) - 10, b"0123456789")
    disks.snapshot(LIVE, "s")
    assert disks.extents("s") == [((1 << 40) - GRANULE, GRANULE)]
    assert [run.length for run in disks.runs("s", 0, 1 << 40) if run.fd is not None] == [GRANULE]
    assert sum(path.stat().st_blocks for path in tmp_path.iterdir()) * 512 < 1 << 20
