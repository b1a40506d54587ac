"""The man page and the completion are those of the command line, and their programs take them."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.e2e.test_cli_process import VERBS

DOCS = Path(__file__).resolve().parents[2] / "docs"
MAN = DOCS / "mover.1"


def test_the_man_page_has_every_verb_and_option():
    from mover.cli.parser import build_parser
    from tests.tools.cli_pages import _actions

    text = MAN.read_text().replace("\\-", "-")
    for verb in VERBS:
        assert f"mover {verb}" in text.replace("\\fR", "").replace("\\fI", "").replace("\\fB", "")
    for action in _actions(build_parser()):
        for option in set(action.option_strings) - {"-h", "--help"}:
            assert option in text, option


def test_groff_takes_the_man_page():
    if shutil.which("groff") is None:
        pytest.skip("groff is not there (Debian: groff-base)")
    done = subprocess.run(
        ["groff", "-man", "-ww", "-Tutf8", str(MAN)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "0 if all is well" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("rep", {"repair", "report"}),
        ("exp", {"explain"}),
        ("run --sch", {"--schedule"}),
        ("run --progress j", {"json"}),
        ("restore --format v", {"vhd"}),
    ],
)
def test_bash_completes(words: str, expected: set[str]):
    if shutil.which("bash") is None:
        pytest.skip("bash is not there")
    given = ["mover", *words.split()]
    script = (
        f"source {DOCS}/completion/mover.bash\n"
        f"COMP_WORDS=({' '.join(given)}); COMP_CWORD={len(given) - 1}\n"
        f"_shtab_mover mover {given[-1]} {given[-2]}\n"
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert set(done.stdout.split()) == expected, done.stderr


@pytest.mark.parametrize(("shell", "file"), [("zsh", "_mover"), ("tcsh", "mover.csh")])
def test_other_shells_take_it(shell: str, file: str):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not there (Debian: {shell})")
    done = subprocess.run(
        [shell, "-n", str(DOCS / "completion" / file)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
