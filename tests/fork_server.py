"""`python -m MODULE` as a process of its own that has everything imported when it begins.

Most of what a short command takes are its imports. A fork server has done them once for each process of pytest, and
what is started here is forked from it: with its own PID, signals, streams, environment and working directory, and it
ends as the interpreter does. How the interpreter itself begins (PYTHON* variables, streams that are closed), what is
imported when, and how much memory is taken needs a process that is started in the usual way.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import os
import pkgutil
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# prctl(2)
_SET_CHILD_SUBREAPER = 36
_lock = threading.Lock()
_server: list[socket.socket] = []


class Popen(subprocess.Popen[Any]):
    """As that of the standard library, for `[sys.executable, "-m", MODULE, ARGUMENTS...]`.

    Only how the process comes into being is replaced; pipes, waiting and signals are the standard library's.
    """

    def _execute_child(  # type: ignore[override]
        self, args: Sequence[str], _executable: Any, preexec_fn: Any, _close_fds: Any, pass_fds: Any, cwd: Any,
        env: Any, _startupinfo: Any, _creationflags: Any, shell: Any, p2cread: int, p2cwrite: int, c2pread: int,
        c2pwrite: int, errread: int, errwrite: int, *rest: Any,
    ) -> None:  # fmt: skip
        assert list(args[:2]) == [sys.executable, "-m"] and not (preexec_fn or pass_fds or shell)
        inherited = dict(os.environ if env is None else env)
        assert _of_the_interpreter(inherited) == _of_the_interpreter(os.environ), "it has begun already"
        asked = {
            "words": [str(word) for word in args[2:]],
            "cwd": str(cwd or Path.cwd()),
            "env": inherited,
        }
        streams = [own if given == -1 else given for own, given in enumerate((p2cread, c2pwrite, errwrite))]
        with _lock:
            server = _running()
            _adopt(True)
            socket.send_fds(server, [json.dumps(asked).encode()], streams)
            answer = server.recv(64)
            _adopt(False)
        assert answer, "the fork server has ended"
        self.pid = int(answer)
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)  # type: ignore[attr-defined]


def run(
    args: Sequence[str], *, capture_output: bool = False, timeout: float | None = None, check: bool = False, **how: Any
) -> subprocess.CompletedProcess[Any]:
    """As `subprocess.run`."""
    if capture_output:
        how |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Popen(args, **how) as process:
        try:
            out, said = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(args, process.returncode, out, said)
    if check:
        done.check_returncode()
    return done


@dataclass
class Process:
    """As that of asyncio, with what it needs of it here."""

    started: Popen
    stdout: asyncio.StreamReader | None
    stderr: asyncio.StreamReader | None

    @property
    def returncode(self) -> int | None:
        return self.started.poll()

    @property
    def pid(self) -> int:
        return self.started.pid

    def send_signal(self, number: int) -> None:
        self.started.send_signal(number)

    def kill(self) -> None:
        self.started.kill()

    async def wait(self) -> int:
        code: int = await asyncio.get_running_loop().run_in_executor(None, self.started.wait)
        return code


async def create_subprocess_exec(*args: str, **how: Any) -> Process:
    """As `asyncio.create_subprocess_exec`."""
    started = Popen(args, **how)
    return Process(started, await _reader(started.stdout), await _reader(started.stderr))


async def _reader(pipe: Any) -> asyncio.StreamReader | None:
    if pipe is None:
        return None
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    return reader


def _of_the_interpreter(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that are looked at when the interpreter begins."""
    return {name: value for name, value in environment.items() if name.startswith("PYTHON")}


def _adopt(whether: bool) -> None:
    """Whether processes whose parent has ended become children of this one: then it can wait for them."""
    ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, int(whether), 0, 0, 0)


def _running() -> socket.socket:
    """The connection to the fork server of this process. The server ends with it."""
    if not _server:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            subprocess.Popen(
                [sys.executable, "-m", "tests.fork_server", str(theirs.fileno())],
                cwd=ROOT,
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        _server.append(ours)
    return _server[0]


def _import_all() -> None:
    """All of it, also what only some verbs import."""
    for package in ("mover", "protocol"):
        for module in pkgutil.walk_packages(import_module(package).__path__, f"{package}."):
            if not module.name.endswith("__main__"):
                import_module(module.name)


def _serve(asking: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Fork as often as asked to; returns, in each process that was forked, what it is to be, and its streams."""
    while True:
        message, streams, _, _ = socket.recv_fds(asking, 1 << 20, 3)
        if not message:
            os._exit(0)
        told, tell = os.pipe()
        between = os.fork()
        if between == 0:
            # This one ends at once, so that its child is left to who has asked.
            child = os.fork()
            if child == 0:
                os.close(told)
                os.close(tell)
                asking.close()
                return json.loads(message), streams
            os.write(tell, str(child).encode())
            os._exit(0)
        os.waitpid(between, 0)
        asking.send(os.read(told, 64))
        for fd in (*streams, told, tell):
            os.close(fd)


def _become(asked: dict[str, Any], streams: list[int]) -> str:
    """Make of this process what was asked for; returns the module to run."""
    for number, fd in enumerate(streams):
        os.dup2(fd, number)
        os.close(fd)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(asked["env"])
    time.tzset()
    os.chdir(asked["cwd"])
    sys.path[0] = asked["cwd"]
    # As the interpreter opens them: the last one is never held back, whatever it is.
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - these three are open to the end of the process
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.argv = list(asked["words"])
    return sys.argv[0]


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _import_all()
    assert len(os.listdir("/proc/self/task")) == 1, "what is forked from several threads may wait for one that is gone"
    gc.collect()
    gc.freeze()
    runpy.run_module(_become(*_serve(socket.socket(fileno=int(sys.argv[1])))), run_name="__main__", alter_sys=True)
