"""Who may import whom. Read from the source, imports inside functions included.

mover/cli > demo > run > serve > restore > backup > source > pipeline > store > protocol/
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# From the ground up. A module may import its own package and what stands above it in this list.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("protocol",),
    ("mover.__version__", "mover.errors", "mover.units", "mover.printable", "mover.malloc"),
    ("mover.events", "mover.failure", "mover.lock"),
    ("mover.job", "mover.store"),
    ("mover.retention", "mover.history", "mover.systemd", "mover.storage", "mover.pipeline"),
    ("mover.unusual",),
    ("mover.report",),
    ("mover.source",),
    ("mover.copy",),
    ("mover.backup",),
    ("mover.restore",),
    ("mover.serve",),
    ("mover.run",),
    ("mover.explain",),
    ("mover.check",),
    ("mover.demo",),
    ("mover.cli",),
    ("mover.__main__",),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}

IO = {
    *("asyncio", "selectors", "socket", "ssl", "subprocess", "threading", "concurrent", "signal", "multiprocessing"),
    *("os", "pathlib", "tempfile", "shutil", "mmap", "http", "urllib", "xmlrpc", "aiohttp", "nbd", "XenAPI", "uvloop"),
}
WAITING = {"asyncio", "uvloop", "aiohttp", "nbd", "XenAPI", "ssl"}  # socket: a lease may say on which host it is
FORMATS = ("extent", "cbt", "vhd", "vhd_stream", "forward", "xva")
SHARED_WITH_SIMULATOR = {
    *(f"protocol.{name}" for name in (*FORMATS, "secret", "errors")),
    *(f"protocol.xva.{name}" for name in ("check", "compression", "ova", "reader", "tar", "writer")),
}


def name_of(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> dict[str, ast.Module]:
    files = [path for top in ("mover", "protocol") for path in (ROOT / top).rglob("*.py")]
    return {name_of(path): ast.parse(path.read_text()) for path in files}


@cache
def imports(module: str) -> frozenset[str]:
    """What a module imports, as modules: `from a import b` is a.b if there is such a module, a otherwise."""
    return frozenset(_imports(modules()[module]))


def _imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "imports are absolute"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in modules() or whole in RANK else node.module


def layer_of(module: str) -> str:
    return "protocol" if module.split(".")[0] == "protocol" else ".".join(module.split(".")[:2])


def is_ours(module: str) -> bool:
    return module.split(".")[0] in ("mover", "protocol")


def under(prefix: str) -> list[str]:
    return [module for module in modules() if module == prefix or module.startswith(f"{prefix}.")]


def formats() -> list[str]:
    return [module for name in FORMATS for module in under(f"protocol.{name}")]


def test_there_is_something_to_look_at():
    assert len(modules()) > 100
    assert "mover.store" in imports("mover.run")
    assert "protocol.extent" in imports("mover.store.reader")
    assert {"protocol.extent", "protocol.cbt", "protocol.vhd", "protocol.xva.reader"} <= set(formats())


def test_every_module_has_a_layer():
    unknown = {layer_of(module) for module in modules()} - set(RANK) - {"mover", "mover.simulator"}
    assert not unknown, f"say in {Path(__file__).name} where they belong"
    assert not {name for name in imports("mover") if is_ours(name)}, "mover/__init__.py is imported by everything"


@pytest.mark.parametrize("layer", RANK)
def test_nothing_imports_upwards(layer: str):
    upwards = {
        f"{module} imports {other}"
        for module in (m for m in modules() if layer_of(m) == layer)
        for other in imports(module)
        if is_ours(other) and layer_of(other) != layer and RANK.get(layer_of(other), -1) >= RANK[layer]
    }
    assert not upwards


def test_only_cli_and_demo_know_the_simulator():
    knowing = {layer_of(m) for m in modules() if any(layer_of(other) == "mover.simulator" for other in imports(m))}
    assert knowing == {"mover.cli", "mover.demo", "mover.simulator"}
    by_verb = {module for module in under("mover.cli") if any("simulator" in other for other in imports(module))}
    assert by_verb <= {"mover.cli.simulate", "mover.cli.demo"}


def test_only_cli_knows_the_demo():
    knowing = {layer_of(m) for m in modules() if any(layer_of(other) == "mover.demo" for other in imports(m))}
    assert knowing <= {"mover.cli", "mover.demo"}


def test_the_simulator_shares_only_formats_and_the_nbd_server_with_the_client():
    shared = {other for m in under("mover.simulator") for other in imports(m) if is_ours(other)}
    foreign = {other for other in shared if layer_of(other) != "mover.simulator"}
    assert foreign <= SHARED_WITH_SIMULATOR | {"protocol.nbd.server"}


def test_the_nbd_server_shares_nothing_with_the_client():
    """Else each would agree with the other's mistakes."""
    server = reached_from("protocol.nbd.server")
    client = reached_from("protocol.nbd.reader") | reached_from("protocol.nbd.connection")
    assert len(server) > 1
    assert server & client <= SHARED_WITH_SIMULATOR


def reached_from(start: str) -> set[str]:
    reached, waiting = set[str](), [start]
    while waiting:
        module = waiting.pop()
        if module not in reached:
            reached.add(module)
            waiting += [other for other in imports(module) if is_ours(other)]
    return reached


@pytest.mark.parametrize("module", formats())
def test_formats_do_no_input_or_output(module: str):
    assert not {other.split(".")[0] for other in imports(module)} & IO
    called = {node.func.id for node in ast.walk(modules()[module]) if is_call_by_name(node)}
    assert not called & {"open", "print", "input"}


def is_call_by_name(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name)


@pytest.mark.parametrize("module", under("mover.store"))
def test_the_store_never_waits_for_a_network(module: str):
    assert not {other.split(".")[0] for other in imports(module)} & WAITING
    assert not any(isinstance(node, ast.AsyncFunctionDef | ast.Await) for node in ast.walk(modules()[module]))
    assert {other for other in imports(module) if layer_of(other) == "protocol"} <= SHARED_WITH_SIMULATOR


def test_what_is_heavy_is_imported_where_it_is_needed():
    """`import nbd` costs a library; rich half of what `mover list` takes."""
    users = {
        library: {layer_of(m) for m in modules() if any(other.split(".")[0] == library for other in imports(m))}
        for library in ("nbd", "XenAPI", "rich", "uvloop")
    }
    assert users["nbd"] == users["XenAPI"] == {"protocol"}
    assert users["rich"] <= {"mover.report", "mover.demo"}
    assert users["uvloop"] <= {"mover.cli"}
