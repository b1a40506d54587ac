"""Secrets from files, variables and commands."""

import traceback

import pytest

from mover.errors import SecretError
from mover.job import read_secret, secrets


def read(**source: object) -> str:
    given = {"file": None, "env": None, "command": None} | source
    return read_secret("the password", **given).reveal()  # type: ignore[arg-type]


def test_the_first_line_of_a_private_file(tmp_path):
    path = tmp_path / "secret"
    path.write_text("hunter2\nsecond line\n")
    path.chmod(0o600)
    assert read(file=str(path)) == "hunter2"


def test_a_file_that_others_can_read_is_refused(tmp_path):
    path = tmp_path / "secret"
    path.write_text("hunter2")
    path.chmod(0o640)
    with pytest.raises(SecretError) as caught:
        read(file=str(path))
    assert "hunter2" not in str(caught.value)
    assert caught.value.hint == f"chmod 600 {path}"


@pytest.mark.parametrize("content", [b"hunter2", b"hunter2\n", b"hunter2\r\nmore", b"hunter2\n\xe2\x80\xa8"])
def test_line_ends_of_any_system_are_not_part_of_it(tmp_path, content):
    path = tmp_path / "secret"
    path.touch(0o600)
    path.write_bytes(content)
    assert read(file=str(path)) == "hunter2"


def test_characters_that_only_look_like_line_ends_are_part_of_it(tmp_path):
    path = tmp_path / "secret"
    path.touch(0o600)
    path.write_text("a\u2028b\x0bc \n")
    assert read(file=str(path)) == "a\u2028b\x0bc "


@pytest.mark.parametrize("content", [b"", b"\nhunter2", b"\xff\xfe"])
def test_an_empty_first_line_or_no_text_is_an_error(tmp_path, content):
    path = tmp_path / "secret"
    path.touch(0o600)
    path.write_bytes(content)
    with pytest.raises(SecretError):
        read(file=str(path))


def test_variable_and_command(monkeypatch):
    monkeypatch.setenv("THE_SECRET", "from env")
    assert read(env="THE_SECRET") == "from env"
    assert read(command=("printf", "%s\\n", "from command")) == "from command"


@pytest.mark.parametrize(
    "source",
    [{"file": "/nonexistent/secret"}, {"env": "NOT_SET_ANYWHERE"}, {"command": ("false",)}, {"command": ("true",)}, {}],
)
def test_what_cannot_be_read_is_an_error_not_an_empty_secret(source):
    with pytest.raises(SecretError):
        read(**source)


def test_a_command_that_takes_too_long_is_named_without_its_arguments(monkeypatch):
    monkeypatch.setattr(secrets, "_COMMAND_TIMEOUT", 0.2)
    command = ("sh", "-c", "exec sleep 60", "hunter2")
    with pytest.raises(SecretError) as caught:
        read(command=command)
    assert str(caught.value) == "the password: the command sh did not end within 0.2 s"
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


def test_secrets_do_not_show_themselves():
    secret = read_secret("it", file=None, env=None, command=("echo", "hunter2"))
    assert "hunter2" not in f"{secret} {secret!r} {[secret]}"
