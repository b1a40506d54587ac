"""How fast two threads seal a disk image into a new store, beside `zstd -1 -T2` on the same file.

    .venv/bin/python bench/store_seal.py [IMAGE] [--threads N] [--rounds N]

Without IMAGE, half a GiB is made of the largest shared libraries of this machine. Both read from the page cache and
write to the same directory; the numbers of one round belong together, the machine may be faster a minute later.
"""

from __future__ import annotations

import argparse
import mmap
import os
import shutil
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mover.store import Store

SLOT = 2 << 20


def sample(path: Path, size: int) -> None:
    """Fill a file with real executables."""
    files = [file for file in Path("/usr/lib").rglob("*") if file.is_file() and not file.is_symlink()]
    files.sort(key=lambda file: file.stat().st_size, reverse=True)
    with path.open("wb") as out:
        for file in files:
            data = file.read_bytes()[: size - out.tell()]
            out.write(data + bytes(-len(data) % 4096))
            if out.tell() >= size:
                break


def seal_all(store: Store, image: memoryview, threads: int) -> tuple[int, int]:
    """Bytes of non-zero data, bytes stored."""
    with store.writer() as writer, ThreadPoolExecutor(threads) as pool:
        tree = writer.tree(len(image))

        def one(offset: int) -> tuple[int, int]:
            sealed = writer.seal(image[offset : offset + SLOT])
            tree.put(offset // store.chunk_size, sealed.ids)
            return sealed.known + sealed.new, sealed.stored

        parts = list(pool.map(one, range(0, len(image), SLOT)))
        tree.finish()
    return sum(data for data, _ in parts), sum(stored for _, stored in parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", nargs="?", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        image = arguments.image or Path(scratch, "image")
        if arguments.image is None:
            sample(image, 512 << 20)
        with image.open("rb") as file:
            view = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
        for number in range(arguments.rounds):
            store = Store.create(Path(scratch, f"store{number}"))
            started, cpu = time.perf_counter(), time.process_time()
            data, stored = seal_all(store, view, arguments.threads)
            seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
            again = time.perf_counter()
            seal_all(store, view, arguments.threads)
            again = time.perf_counter() - again
            shutil.rmtree(Path(scratch, f"store{number}"))
            started = time.perf_counter()
            compressed = Path(scratch, "out.zst")
            subprocess.run(
                ["zstd", "-1", f"-T{arguments.threads}", "-qf", os.fspath(image), "-o", os.fspath(compressed)],
                check=True,
            )
            zstd = time.perf_counter() - started
            size = len(view) / 1e6
            print(
                f"seal {seconds:.2f} s, {size / seconds:.0f} MB/s ({data / 1e6 / seconds:.0f} MB/s of data, "
                f"cpu {cpu:.2f} s, ratio {stored / max(data, 1):.3f}); "
                f"nothing new {again:.2f} s, {size / again:.0f} MB/s; "
                f"zstd -1 -T{arguments.threads} {zstd:.2f} s, {size / zstd:.0f} MB/s, "
                f"ratio {compressed.stat().st_size / len(view):.3f}; {zstd / seconds:.2f} x zstd"
            )


if __name__ == "__main__":
    main()
