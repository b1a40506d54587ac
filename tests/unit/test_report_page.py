"""The page of plots: whole in itself, true to the points, harmless whatever a VM is called; and without matplotlib."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from mover.report.html import page
from mover.store import Point, PointDisk, PointRecord, Store
from mover.store.names import PointName
from tests import fork_server

pytest.importorskip("matplotlib", reason="matplotlib is not installed (the extra `report`)")

MiB = 1 << 20
NASTY = '<script src="//evil.example/x.js">$\\frac{a}{b}$</script>\x1b[31m'


def point(number: int, vm: str, name: str, changed: int, **more: object) -> Point:
    disk = PointDisk(
        position="0",
        name="disk",
        vdi_uuid=vm,
        size=900 * MiB,
        root=bytes(32),
        changed=changed,
        read=changed,
        new=changed,
        stored=changed // 2,
        seconds=2.0 + number,
        **more,
    )
    record = PointRecord(vm_uuid=vm, vm_name=name, created=1.7e9 + number * 86_400, disks=[disk])
    return Point(f"{number:016x}", PointName(f"{number:032x}", 0), record)


@pytest.fixture(scope="module")
def made() -> str:
    points = [point(day, "a", NASTY, MiB * (day + 1), mode="incremental") for day in range(9)]
    points.append(point(9, "a", NASTY, 800 * MiB, mode="incremental"))
    points.append(point(3, "b", "web", 5 * MiB, mode="full", reason="the base snapshot is gone & more"))
    return page(points, "/srv/backup", 1.75e9)


class Seen(HTMLParser):
    """Tags that must be closed and are, and every attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in ("meta", "path", "use"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("path", "use"):
            assert self.open.pop() == tag


def test_nothing_is_fetched_and_no_script_runs(made: str):
    seen = Seen()
    seen.feed(made)
    assert seen.open == []
    assert not {tag for tag, _, _ in seen.attributes} & {"script", "img", "link", "iframe", "object", "image"}
    assert "<script" not in made and "@import" not in made and "\x1b" not in made
    for tag, name, value in seen.attributes:
        if name in ("href", "xlink:href", "src"):
            assert value.startswith("#"), (tag, name, value)
        assert not name.startswith("on")
        assert "url(" not in value or "url(#" in value
    assert "default-src 'none'" in made


def test_every_picture_is_an_svg_whose_colours_the_page_decides_on(made: str):
    pictures = re.findall(r"<svg .*?</svg>", made, re.DOTALL)
    assert len(pictures) == 2
    defined = set(re.findall(r"--([a-z]+):", made))
    assert made.count("prefers-color-scheme: dark") == 1
    for picture in pictures:
        root = ElementTree.fromstring(picture)
        words = " ".join(text for element in root.iter() if (text := (element.text or "").strip()))
        for title in ("bytes per run", "duration (s)", "ratios", "changed", "read", "stored", "compression"):
            assert title in words
        used = set(re.findall(r"var\(--([a-z]+)\)", picture))
        assert {"ink", "changed", "read", "stored", "duration", "deduplication", "compression"} <= used <= defined
        assert not re.findall(r"#(?:000000|ffffff|0a0b)[0-9a-f]*", picture)
    assert "unusual" in pictures[0] or "unusual" in pictures[1]


def test_ids_are_not_there_twice(made: str):
    ids = re.findall(r' id="([^"]+)"', made)
    assert len(ids) == len(set(ids))
    referred = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', made))
    assert {a or b for a, b in referred} <= set(ids)


def test_the_tables_say_what_the_points_say(made: str):
    text = re.sub(r"<[^>]+>", " ", made)
    assert "11 restore points of 2 VMs" in text
    assert "800 MiB" in text and "2 : 1" in text
    assert "1 disk in full; disk 0: the base snapshot is gone &amp; more" in text
    assert "The newest point is unusual: 800 MiB changed, 88.9% of its disks" in text
    assert "&lt;script src=" in made


def test_the_same_points_make_the_same_page(made: str):
    points = [point(day, "a", "web", MiB * (day + 1)) for day in range(3)]
    assert page(points, "/s", 1.0) == page(list(reversed(points)), "/s", 1.0)


def test_an_empty_store_and_a_vm_without_disks():
    assert "There is no restore point yet" in page([], "/s", 1.0)
    record = PointRecord(vm_uuid="v", vm_name="", created=1.0, disks=[])
    assert "(no name)" in page([Point("0" * 16, PointName("0" * 32, 0), record)], "/s", 1.0)


def report(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    # Variables of Python's own are read when the interpreter begins.
    return (subprocess.run if environment else fork_server.run)(
        [sys.executable, "-m", "mover", "report", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **environment},
    )


def test_the_command(tmp_path: Path):
    Store.create(tmp_path / "store")
    done = report(tmp_path / "store", "--html", tmp_path / "page.html")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{tmp_path}/page.html\n", "")
    assert "There is no restore point yet" in (tmp_path / "page.html").read_text()
    assert report(tmp_path / "store", "nobody", "--html", tmp_path / "page.html").returncode == 21
    nowhere = report(tmp_path / "store", "--html", tmp_path / "none" / "page.html")
    assert (nowhere.returncode, "error: cannot write " in nowhere.stderr) == (25, True)


def test_without_matplotlib_the_command_to_install_it(tmp_path: Path):
    Store.create(tmp_path / "store")
    stub = tmp_path / "path" / "matplotlib"
    stub.mkdir(parents=True)
    (stub / "__init__.py").write_text("raise ModuleNotFoundError('No module named matplotlib')\n")
    path = f"{stub.parent}:{os.environ.get('PYTHONPATH', '')}"
    done = report(tmp_path / "store", "--html", tmp_path / "page.html", PYTHONPATH=path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == "hint: install matplotlib beside mover: `./dev setup` does"
    assert not (tmp_path / "page.html").exists()
