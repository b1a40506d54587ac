"""The kernel is asked to write a file while it is being filled."""

import os
from pathlib import Path

from mover.restore.writeback import Writeback, begin_writing

PIECE = b"written" * (1 << 20)


def test_the_kernel_takes_the_request_for_a_file_and_for_nothing_else(tmp_path: Path) -> None:
    """A refusal would go unnoticed otherwise: everything is right without it, and only slower."""
    with (tmp_path / "disk").open("wb") as file:
        file.write(PIECE)
        file.flush()
        assert begin_writing(file.fileno())
    reading, writing = os.pipe()
    assert not begin_writing(writing)
    os.close(reading)
    os.close(writing)


def test_a_file_that_is_on_its_way_is_what_was_written(tmp_path: Path) -> None:
    """Writing goes on meanwhile, over what is on its way too."""
    path = tmp_path / "disk"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    writeback = Writeback(descriptor)
    for number in range(12):
        at = number // 2 * len(PIECE)
        writeback.wrote(os.pwrite(descriptor, PIECE if number % 2 else PIECE[::-1], at))
    os.close(descriptor)
    assert path.read_bytes() == PIECE * 6
