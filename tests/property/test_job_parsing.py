"""Any value under any key of a job gives a job, or complaints that name the place; never anything else."""

import dataclasses
import re
import string

from hypothesis import given
from hypothesis import strategies as st

from mover.errors import JobError
from mover.job import Job, parse_job
from mover.job.model import (
    BackupSection,
    ExcludeSection,
    HooksSection,
    LimitsSection,
    PoolSection,
    ReportSection,
    RetentionSection,
    ScheduleSection,
    SelectorSection,
    StoreSection,
)
from mover.units import MAX_SIZE, format_size, parse_size

SECTIONS = {
    "pool": PoolSection,
    "store": StoreSection,
    "backup": BackupSection,
    "exclude": ExcludeSection,
    "hooks": HooksSection,
    "limits": LimitsSection,
    "retention": RetentionSection,
    "report": ReportSection,
}
LISTS = {"vms": SelectorSection, "schedules": ScheduleSection}
SECRET = "correct horse battery"

quoted = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Zs"]), max_size=12).map(
    lambda text: '"' + "".join(f"\\u{ord(c):04x}" if ord(c) < 0x10000 else f"\\U{ord(c):08x}" for c in text) + '"'
)
likely = st.sampled_from(
    """ "64KiB" "10m" "zstd:3" "auto" "none" "full" "xva" true false 1 4 ["/bin/true"] "https://x" "/srv" "0" ["a","b"]
    "\\u0000" "web-*" [] {} "sha256:" """.split()
)
numbers = st.one_of(
    st.integers().map(str),
    st.integers(10**39, 10**41).map(str),
    st.integers(1, 6000).map(lambda digits: "0x" + "f" * digits),
    st.sampled_from(["nan", "inf", "-inf", "1e999", "0.5", "2026-11-23", "2026-11-23T01:30:00Z", "01:30:00"]),
)
scalars = likely | numbers | quoted
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]")
        | st.dictionaries(st.text(string.ascii_lowercase, min_size=1, max_size=4), inner, max_size=2).map(
            lambda items: "{" + ", ".join(f"{name} = {value}" for name, value in items.items()) + "}"
        )
    ),
    max_leaves=5,
)


def keys_of(section: type) -> list[str]:
    return [field.name.replace("_", "-") for field in dataclasses.fields(section) if field.metadata]


@st.composite
def documents(draw: st.DrawFn) -> str:
    lines: list[str] = []
    for header, section in [(f"[{name}]", cls) for name, cls in SECTIONS.items()] + [
        (f"[[{name}]]", cls) for name, cls in LISTS.items() for _ in range(2)
    ]:
        chosen = draw(st.lists(st.sampled_from(keys_of(section)), unique=True, max_size=3))
        if chosen or draw(st.booleans()):
            lines.append(header)
            lines += [f"{name} = {draw(values)}" for name in chosen]
    return "\n".join(lines) + "\n"


@given(documents())
def test_a_job_or_complaints_that_name_file_line_column_and_key(text: str):
    lines = text.split("\n")
    try:
        assert isinstance(parse_job(text, "f", "j"), Job)
    except JobError as error:
        for complaint in str(error).split("\n"):
            match = re.fullmatch(r"f:(\d+):(\d+): (\S+): (?:found (.*); )?.*", complaint)
            assert match, complaint
            key = re.sub(r"\[\d+\]", "", match[3].split(".")[-1])
            pointed = lines[int(match[1]) - 1][int(match[2]) - 1 :]
            if not (match[4] or "").startswith(("nothing", "none")) and " and " not in (match[4] or ""):
                assert pointed.startswith(key), complaint


@given(st.sampled_from(sorted(SECTIONS)), st.data())
def test_no_secret_is_repeated_wherever_people_put_it(section: str, data: st.DataObject):
    names = [name for name in keys_of(SECTIONS[section]) if name.startswith(("password", "passphrase"))]
    name = data.draw(st.sampled_from([*names, "password", "passphrase", "pasword", "secret"]))
    value = data.draw(st.sampled_from([f'"{SECRET}"', f'["{SECRET}", 1]', f'{{x = "{SECRET}"}}', f'["", "{SECRET}"]']))
    try:
        parse_job(f"[{section}]\n{name} = {value}\n", "f", "j")
    except JobError as error:
        assert SECRET not in str(error) + error.hint
    else:
        raise AssertionError("a job without a pool")


@given(st.integers(0, MAX_SIZE))
def test_a_shown_size_is_what_it_says_to_three_digits(size: int):
    number, unit = format_size(size).split()
    assert abs(float(number) * parse_size(f"1{unit}") - size) <= size * 0.005
