"""What somebody sees who tries the program on a simulated pool, at a terminal: the real programs, a pseudo-terminal."""

import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import fork_server
from tests.cli_site import MOVER, on_a_terminal


@contextmanager
def simulated(folder: Path, *arguments: str) -> Iterator[Path]:
    """A pool that is served as long as the block lasts; a job with the section that it printed."""
    command = [*MOVER, "simulate", "--dir", str(folder / "pool"), *arguments]
    with fork_server.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        section = []
        for line in process.stdout:
            section.append(line)
            if line.startswith("#"):
                break
        job = folder / "job.toml"
        job.write_text("".join(section) + f'[store]\nurl = "{folder}/store"\n[[vms]]\ntag = "backup"\n')
        try:
            yield job
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130


def test_a_terminal_has_bars_with_rates_and_the_table_a_pipe_has_lines(tmp_path: Path):
    # 24 MiB in requests of 2 MiB over four connections, each answered after half a second.
    with simulated(tmp_path, "--vm", "web-1=48MiB,4MiB", "--latency", "0.5") as job:
        code, shown = on_a_terminal("run", str(job))
        assert code == 0, shown
        text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)
        lines = re.split(r"[\r\n]+", text)
        bars = [line for line in lines if line.startswith("web-1/0 full")]
        assert len({re.search(r"(\d+)%", bar)[1] for bar in bars}) > 2, "a bar that moves"  # type: ignore[index]
        assert any(re.search(r"━+.* \d+% [\d.]+/24.0 MiB +[\d.]+ MB/s \d:\d\d:\d\d", bar) for bar in bars), bars
        table = next(
            at for at, line in enumerate(lines) if re.match(r"VM +outcome +disks +changed +read +stored", line)
        )
        assert re.match(r"web-1 +done +2, 2 full +26 MiB +26 MiB", lines[table + 1])
        done = fork_server.run([*MOVER, "run", str(job)], capture_output=True, text=True, timeout=60, check=True)
        assert "\x1b" not in done.stderr + done.stdout and "━" not in done.stderr
        assert any(line.startswith("web-1/0 (web-1 disk 0): incremental, 0 B of") for line in done.stderr.splitlines())
        assert re.fullmatch(r"web-1\tdone\t[0-9a-f]{16}\n", done.stdout)


@pytest.mark.parametrize("text", ["web", "web=", "web=0", "=1GiB", "web=1XB", "web=4MiB,"])
def test_a_vm_that_cannot_be_made_is_said(tmp_path: Path, text: str):
    command = [*MOVER, "simulate", "--dir", str(tmp_path), "--vm", text]
    done = fork_server.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"--vm {text}" in done.stderr and "hint: as in --vm web=1GiB,64MiB" in done.stderr
