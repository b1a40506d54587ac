"""What we do, as operations on plain values for `bench.child`. Each returns `seconds` and what there is to check."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from bench.operations.indexes import look_up, make_index
from bench.operations.place import Facts
from bench.operations.pruning import check_generations, check_small, forget_and_prune, make_generations
from bench.operations.reading import read, read_and_compare, snapshot
from bench.operations.restoring import compare, read_extents, restore_files, restore_stream
from bench.operations.stores import stored_bytes
from bench.operations.storing import back_up, compress, run, seal, unlock

OPERATIONS: dict[str, Callable[..., Awaitable[Facts]]] = {
    operation.__name__: operation
    for operation in (
        read,
        read_and_compare,
        snapshot,
        back_up,
        unlock,
        seal,
        compress,
        run,
        restore_files,
        restore_stream,
        compare,
        read_extents,
        make_index,
        look_up,
        stored_bytes,
        make_generations,
        forget_and_prune,
        check_generations,
        check_small,
    )
}
