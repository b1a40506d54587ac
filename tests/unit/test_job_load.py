"""Job files: what is accepted, and how complaints read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mover.errors import JobError
from mover.job import parse_job

GOOD = """\
[pool]
url = "https://xcp-1.example.org"
username = "backup"
password-file = "/etc/mover/xcp.secret"

[store]
url = "file:///srv/backup/mover"

[[vms]]
tag = "backup"

[[vms]]
name = "db-1"
exclude-disks = [
    1,         # the position
    "scratch*",
]
quiesce = true
"""


def complaint(text: str) -> str:
    with pytest.raises(JobError) as caught:
        parse_job(text, "j.toml", "j")
    return str(caught.value)


def test_defaults_units_and_overrides():
    job = parse_job(
        GOOD + '[limits]\nread-rate = "1.5MiB"\n[hooks]\npre-snapshot = ["/bin/freeze"]\ntimeout = "2m"\n', "f", "j"
    )
    assert job.name == "j"
    assert job.store.chunk_size == 65536
    assert job.limits.read_rate == 3 << 19
    assert job.hooks.timeout == 120.0
    assert job.vms[1].exclude_disks == ("1", "scratch*")
    assert job.vms[1].overrides == {"quiesce"}
    assert job.vms[0].overrides == frozenset()


@pytest.mark.parametrize(
    ("old", "new", "place", "words"),
    [
        ('tag = "backup"', 'tga = "backup"', "10:1: vms[0].tga", "did you mean tag?"),
        ('url = "https://xcp-1.example.org"', "url = 7", "2:1: pool.url: found 7", "https://"),
        ('username = "backup"', "", "1:2: pool.username", "required"),
        ('password-file = "/etc/mover/xcp.secret"', "", "1:2: pool.password-file", "exactly one of password-file"),
        ('password-file = "/etc/mover/xcp.secret"', 'password = "hunter2"', "4:1: pool.password", "password-command"),
        ("quiesce = true", "quiesce = 1", "18:1: vms[1].quiesce: found 1", "true or false"),
        ("quiesce = true", 'full-read = "tape"', '18:1: vms[1].full-read: found "tape"', "one of nbd, raw"),
        ("quiesce = true", "all = true", "12:3: vms[1]: found name and all", "exactly one of"),
        ("quiesce = true", 'uuid = "WEB-1"', '18:1: vms[1].uuid: found "WEB-1"', "a UUID as the pool writes it"),
        ("[store]", "[limits]\nvms = 0x" + "f" * 5000 + "\n[store]", "7:1: limits.vms: found a huge", "from 1 to 64"),
        ("[store]", "[limits]\nvms = " + "9" * 5000 + "\n[store]", "not TOML", "4300 digits"),
        ("[store]", "[hooks]\ntimeout = " + "9" * 400 + "\n[store]", "7:1: hooks.timeout", "30 years"),
        ("[store]", '[hooks]\ntimeout = "2 fortnights"\n[store]', "7:1: hooks.timeout", "s, m, h, d, w"),
        ("[store]", '[hooks]\npre-snapshot = "/etc/freeze"\n[store]', "7:1: hooks.pre-snapshot", "there is no shell"),
        ("[store]", '[hooks]\npre-snapshot = ["a\\u0000"]\n[store]', "7:1: hooks.pre-snapshot", "a command as a list"),
        ("/srv/backup", "/srv/\\u0000", '7:1: store.url: found "file:///srv/\\x00', "without control characters"),
        ("[store]", "# \u2028 \x85\n[store]\nx = 1", "8:1: store.x", "one of url"),
        ("xcp-1.example.org", "[xcp", "2:1: pool.url", "as in"),
        ('username = "backup"', 'username = "b"\nfingerprint = "sha256:ab"', "4:1: pool.fingerprint", "64 hex digits"),
        ("[store]", '[store]\nchunk-size = "63KiB"', "7:1: store.chunk-size", "a power of two"),
        ("[store]", '[store]\nchunk-size = "64KB"', "7:1: store.chunk-size", "KiB, MiB"),
        ("[store]", "[[store]]", "6:3: store: found a list", "a table"),
        ('tag = "backup"', "tag = {", "j.toml:10:", "not TOML"),
    ],
)
def test_complaints_name_line_key_found_and_allowed(old: str, new: str, place: str, words: str):
    text = complaint(GOOD.replace(old, new, 1))
    assert place in text
    assert words in text


def test_everything_wrong_is_said_at_once():
    text = complaint(GOOD.replace("username", "user-name").replace("quiesce = true", "quiesce = 3"))
    assert len(text.splitlines()) == 3


def test_a_literal_secret_is_not_repeated():
    assert "hunter2" not in complaint(
        GOOD.replace("password-file", "password").replace("/etc/mover/xcp.secret", "hunter2")
    )


def test_two_schedules_of_one_name():
    text = complaint(GOOD + '[[schedules]]\nname = "a"\n[[schedules]]\nname = "a"\n')
    assert "22:1: schedules[1].name" in text


@pytest.mark.parametrize(
    "line",
    [
        'password-env = "hunter2 "',
        'password-command = "hunter2"',
        'Password = "hunter2"',
        'passphrase = "hunter2"',
        "password-file = { literal = 'hunter2' }",
    ],
)
def test_a_secret_in_the_wrong_place_is_not_repeated(line: str):
    assert "hunter2" not in complaint(GOOD.replace('password-file = "/etc/mover/xcp.secret"', line))


@pytest.mark.parametrize("section", ["pool", "store"])
def test_a_login_in_a_url_is_refused_and_not_repeated(section: str):
    text = complaint(GOOD.replace("://", "://root:hunter2@"))
    assert f"{section}.url" in text
    assert "hunter2" not in text


def test_positions_follow_arrays_and_long_strings():
    text = complaint(
        GOOD.replace("[store]", '[report]\nlog = """\n[store]\nurl = 1\n"""\n[store]\nnope = [ # ]\n 1,\n]\nnope2 = 1')
    )
    assert "7:1: report.log" in text
    assert "12:1: store.nope:" in text
    assert "15:1: store.nope2" in text


LINES = GOOD.splitlines()


@given(
    st.lists(
        st.tuples(st.integers(0, len(LINES) - 1), st.text(max_size=12) | st.sampled_from(["[", "]", '"', "= 1", "{"])),
        min_size=1,
        max_size=4,
    )
)
def test_no_mutation_gives_anything_but_a_job_or_a_job_error(changes: list[tuple[int, str]]):
    lines = list(LINES)
    for number, text in changes:
        lines[number] = lines[number][: len(text)] + text + lines[number][2 * len(text) :]
    try:
        parse_job("\n".join(lines), "f", "j")
    except JobError as error:
        assert str(error)
