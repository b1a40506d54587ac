"""What docs/operations.md says is there is: metrics of the alerts, commands, roles, numbers."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mover.backup.health import CHAIN_LIMIT
from mover.job.model import LimitsSection
from mover.report.prometheus import render
from mover.report.summary import RunSummary, VmSummary
from mover.unusual import ENOUGH
from tests import fork_server
from tests.e2e.test_cli_process import VERBS

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "operations.md").read_text()


def alerts() -> str:
    (block,) = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    return block


def test_the_alerts_ask_for_metrics_and_labels_that_there_are():
    text = render(RunSummary(job="j", vms={"u": VmSummary(uuid="u", name="n")}))
    metrics = set(re.findall(r"^(mover_\w+)\{", text, re.MULTILINE))
    asked = set(re.findall(r"\bmover_\w+", alerts()))
    assert asked and asked <= metrics
    for rule in alerts().split("- alert:")[1:]:
        (metric,) = set(re.findall(r"\bmover_\w+", rule))
        line = next(line for line in text.splitlines() if line.startswith(metric + "{"))
        assert set(re.findall(r"\$labels\.(\w+)", rule)) <= set(re.findall(r'(\w+)="', line)), rule


def test_the_alerts_are_yaml_of_the_right_shape():
    script = (
        "import sys, yaml; (group,) = yaml.safe_load(sys.stdin)['groups']; [print(r['expr']) for r in group['rules']]"
    )
    done = subprocess.run(
        ["/usr/bin/python3", "-c", script], input=alerts(), capture_output=True, text=True, timeout=60, check=False
    )
    if "No module named 'yaml'" in done.stderr:
        pytest.skip("PyYAML is not there (Debian: python3-yaml)")
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 5), done.stderr


def test_the_page_says_what_notices_a_run_that_hangs():
    (about,) = re.findall(r"```\n\n(A run that hangs.*?)\n\n", PAGE, re.DOTALL)
    (alert,) = set(re.findall(r"`(\w+)`", about)) & set(re.findall(r"alert: (\w+)", alerts()))
    assert "mover_run_finished_time_seconds" in alerts().split(f"alert: {alert}")[1].split("- alert:")[0]


def test_commands_options_and_pages_that_are_named_are_there():
    for verb, options in re.findall(r"`mover (\w+)([^`]*)`", PAGE):
        assert verb in VERBS
        usage = fork_server.run(
            [sys.executable, "-m", "mover", verb, "--help"], capture_output=True, text=True, timeout=60, check=True
        ).stdout
        for option in re.findall(r"--[a-z-]+", options):
            assert option in usage, (verb, option)
    for page in re.findall(r"\]\(([a-z-]+\.md)", PAGE):
        assert (DOCS / page).exists()


def test_numbers_are_those_of_the_code():
    assert f"history of {['', 'one', 'two', 'three', 'four', 'five', 'six', 'seven'][ENOUGH]}\npoints" in PAGE
    assert f"A chain of {CHAIN_LIMIT} images" in PAGE
    default = LimitsSection().nbd_connections_per_host
    assert f"`nbd-connections-per-host`\n({default})" in PAGE


def test_reasons_are_those_that_a_run_gives():
    code = "\n".join(path.read_text() for path in (DOCS.parent / "mover").rglob("*.py"))
    table = PAGE[PAGE.index("| reason | what to do |") :].split("\n\n")[0]
    for row in table.splitlines()[2:]:
        reason = row.split("|")[1].strip()
        for part in re.split(r"…|`[^`]*`", reason):
            if part.strip(" :"):
                assert part.strip(" :") in code, reason
