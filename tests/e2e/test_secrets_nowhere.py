"""Neither the password nor a session stands in anything that a run, a check, an explanation or a report says."""

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests import fork_server
from tests.cli_site import MOVER, PASSWORD, MiB, Site, cli_site, on_a_terminal

# What a session looks like; an NBD export's name holds one.
SESSION = re.compile(r"OpaqueRef:[0-9a-f-]{8,}|session_id=(?!\*)")


class Posts(HTTPServer):
    """Keeps what it is sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Hook)
        self.posted: list[str] = []


class Hook(BaseHTTPRequestHandler):
    """Takes what is posted."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert isinstance(self.server, Posts)
        self.server.posted.append(str(self.headers) + body.decode())
        self.send_response(204)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        """Nothing."""


@pytest.fixture
def posted() -> Iterator[tuple[str, list[str]]]:
    """The URL of a webhook, and what it was sent."""
    with Posts() as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/", server.posted
        finally:
            server.shutdown()
            serving.join()


@pytest.fixture
def site(tmp_path: Path, posted: tuple[str, list[str]]) -> Iterator[Site]:
    with cli_site(tmp_path) as here:
        job = here.job.read_text() + f'webhook = "{posted[0]}"\n'
        job += '[hooks]\npre-snapshot = ["sh", "-c", "env"]\n[retention]\nkeep-last = 3\n'
        job += '[[schedules]]\nname = "nightly"\ncalendar = "daily"\n'
        here.job.write_text(job)
        yield here


def everything(site: Site, posted: list[str]) -> dict[str, str]:
    """All that was printed, sent or written outside of the pool and the store's packs, by where it was."""
    texts = {f"printed {number}": text for number, text in enumerate(site.printed)}
    texts |= {f"posted {number}": text for number, text in enumerate(posted)}
    folders = ("log", "store/points", "units")
    files = [path for folder in folders for path in (site.folder / folder).rglob("*") if path.is_file()]
    for path in [*files, site.folder / "mover.prom", site.folder / "page.html"]:
        texts[str(path)] = path.read_bytes().decode(errors="replace")
    return texts


def run(site: Site, *arguments: object) -> int:
    """A command whose end may be bad; what it says is kept."""
    done = fork_server.run(
        [*MOVER, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env=site.environment(),
    )
    site.printed += [done.stdout, done.stderr]
    return done.returncode


def call_fault(method: str, code: str, *params: str) -> dict[str, Any]:
    return {"type": "call", "method": method, "code": code, "params": params}


def test_password_and_session_are_nowhere(site: Site, posted: tuple[str, list[str]]):
    made = site.tell("make_vm", name="web", sizes=[8 * MiB, 2 * MiB])
    site.tell("fill", vdi=made["vdis"][0], offset=0, length=4 * MiB, kind="random")
    job = site.job
    run(site, "check", job, "--json")
    assert run(site, "run", job, "--progress", "plain") == 0
    assert run(site, "run", job, "--progress", "json", "--json", "--schedule", "nightly") == 0
    assert run(site, "explain", job, "--json") == 0
    code, shown = on_a_terminal("run", job, "--full", POOL_PASSWORD=PASSWORD)
    assert (code, "━" in shown) == (0, True)
    site.printed.append(shown)
    # What goes wrong says most. NBD errors know the export's name, API errors the session.
    site.tell("faults", faults=[{"type": "nbd", "kind": "refuse", "times": 5}])
    assert run(site, "check", job) == 41
    run(site, "run", job, "--full", "--progress", "plain")
    site.tell("faults", faults=[{"type": "clear"}, {"type": "nbd", "kind": "drop", "after": MiB, "times": 2}])
    run(site, "run", job, "--full", "--progress", "json")
    site.tell("faults", faults=[{"type": "clear"}, call_fault("VM.snapshot", "SESSION_INVALID", "OpaqueRef:0123-4567")])
    run(site, "run", job, "--progress", "plain")
    site.tell("faults", faults=[{"type": "http", "kind": "error", "times": 3}])
    run(site, "run", job, "--full", "--progress", "plain")
    site.tell("faults", faults=[{"type": "clear"}])
    site.tell("expire_sessions")
    for verb in (
        ("show", job, "latest", "--json"),
        ("list", job, "--json"),
        ("verify", job, "--progress", "json"),
        ("copy", job, site.folder / "copy"),
        ("repair", job),
        ("prune", job),
        ("report", job, "--html", site.folder / "page.html"),
        ("units", job, "--to", site.folder / "units"),
        ("restore", job, "latest", "--to", site.folder / "out"),
        ("restore", job, "latest", "--job", job, "--progress", "plain"),
    ):
        assert run(site, *verb) == 0, site.printed[-1]
    for where, text in everything(site, posted[1]).items():
        assert PASSWORD not in text, where
        assert not SESSION.search(text), (where, SESSION.findall(text))
    assert len(posted[1]) >= 5
    assert all(json.loads(text[text.index("{") :])["job"] == "job" for text in posted[1])
    assert len([path for path in everything(site, posted[1]) if "units" in path]) == 2


def test_a_wrong_password_is_not_repeated_and_an_interrupted_run_says_nothing_either(
    site: Site, posted: tuple[str, list[str]]
):
    site.tell("make_vm", name="web", sizes=[16 * MiB])
    wrong = "tr0ub4dor&3"
    for verb in ("run", "check", "explain"):
        done = fork_server.run(
            [*MOVER, verb, str(site.job)],
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
            env=site.environment() | {"POOL_PASSWORD": wrong},
        )
        assert done.returncode == (40 if verb == "check" else 20)
        assert wrong not in done.stdout + done.stderr
    site.tell("network", latency=0.2)
    (vdi,) = site.tell("make_vm", name="web 2", sizes=[32 * MiB])["vdis"]
    site.tell("fill", vdi=vdi, offset=0, length=32 * MiB, kind="random")
    said = "".join(site.interrupted("run", site.job))
    log = (site.folder / "log" / "job.jsonl").read_text()
    for text in (said, log, *posted[1]):
        assert wrong not in text and PASSWORD not in text
        assert not SESSION.search(text)
