"""Secrets come from a file, a variable or a command; never from the job file itself."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path

from mover.errors import SecretError
from protocol.secret import Secret

_COMMAND_TIMEOUT = 60.0
_LIMIT = 64 << 10


def read_secret(what: str, *, file: str | None, env: str | None, command: Sequence[str] | None) -> Secret:
    """Read `what` ("the pool's password") from the one source that is given. Raises `SecretError`."""
    if file is not None:
        text = _from_file(what, Path(file))
    elif env is not None:
        text = os.environ.get(env, "")
        if not text:
            raise SecretError(f"{what}: the environment variable {env} is not set")
    elif command is not None:
        text = _from_command(what, command)
    else:
        raise SecretError(f"{what}: no source is given")
    first = text.split("\n", 1)[0].removesuffix("\r")
    if not first:
        raise SecretError(f"{what}: its source has an empty first line")
    return Secret(first)


def _from_file(what: str, path: Path) -> str:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(_LIMIT)
    except OSError as error:
        raise SecretError(f"{what}: cannot read {path}: {error.strerror}") from error
    if stat.S_ISREG(mode) and mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise SecretError(f"{what}: {path} can be read by others", f"chmod 600 {path}")
    return _decoded(what, data)


def _from_command(what: str, command: Sequence[str]) -> str:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_COMMAND_TIMEOUT, check=False
        )
    except OSError as error:
        raise SecretError(f"{what}: the command {command[0]} cannot be run: {error.strerror}") from error
    except subprocess.TimeoutExpired:
        # The exception names all arguments of the command, and those may be secret: it must not be shown as the cause.
        raise SecretError(f"{what}: the command {command[0]} did not end within {_COMMAND_TIMEOUT:g} s") from None
    if done.returncode != 0:
        raise SecretError(f"{what}: the command {command[0]} ended with exit code {done.returncode}")
    return _decoded(what, done.stdout[:_LIMIT])


def _decoded(what: str, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise SecretError(f"{what}: not UTF-8") from error
