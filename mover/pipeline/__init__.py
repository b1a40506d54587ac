"""The path of a byte: blocks from a source into the store, and chunks from the store to a sink.

In:  source -> slot of the arena -> one hop to a worker thread (seal, tree) -> pack.
Out: pack -> one hop to a worker thread (read, decompress, check) -> slot of the arena -> sink.
"""
