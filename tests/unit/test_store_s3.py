"""Object storage without a server: what answers mean, who asks and where, copies of the index on this machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from obstore.exceptions import GenericError, PermissionDeniedError

from mover.errors import JobError, SecretError, StoreIoError, UsageError
from mover.job import parse_job
from mover.store import Store
from mover.store.at_once import at_once
from mover.store.backend import LOCAL, REMOTE, ObjectMissingError
from mover.store.local_copies import LocalCopies, cache_directory
from mover.store.s3 import S3Access, S3Backend
from mover.store.s3.access import connect, split_url
from mover.store.s3.answers import understand
from protocol.secret import Secret
from tests.s3_server import faulty_server, private_authority
from tests.store_fixtures import noise
from tests.store_schedules import MemoryBackend

XML = "<Error><Code>{}</Code><Message>{}</Message></Error>"


def refusal(status: int, code: str = "", message: str = "no") -> str:
    body = XML.format(code, message) if code else ""
    return (
        f"Generic S3 error: Error performing PUT http://h/b/k in 1ms - Server returned status code: {status} X: {body}"
    )


@pytest.mark.parametrize(
    ("text", "passing", "said"),
    [
        (refusal(503, "SlowDown", "Please wait"), True, "Please wait"),
        (refusal(500), True, "the server answers 500"),
        (refusal(501, "NotImplemented"), False, "no"),
        (refusal(429), True, "429"),
        (refusal(409, "ConditionalRequestConflict"), True, "no"),
        (refusal(400, "InvalidRequest"), False, "no"),
        (refusal(507), False, "507"),
        (refusal(403, "QuotaExceeded"), False, "no"),
        ("Generic S3 error: HTTP error: error sending request\n\n kind: Connect,", True, "it cannot be connected to"),
        ("Generic S3 error: HTTP error: operation timed out\n\n kind: Timeout,", True, "it does not answer in time"),
        (
            "Error performing PUT http://169.254.169.254/latest/api/token in 1s - HTTP error\nkind: Timeout",
            False,
            "keys",
        ),
    ],
)
def test_what_answers_mean(text: str, passing: bool, said: str) -> None:
    answer = understand(GenericError(text))
    assert answer.passing == passing
    assert said in answer.text
    assert "\n" not in answer.text


def test_what_to_do_about_them() -> None:
    assert "bucket" in understand(FileNotFoundError(refusal(404, "NoSuchBucket"))).hint
    assert "clock" in understand(PermissionDeniedError(refusal(403, "RequestTimeTooSkewed"))).hint
    assert "secret" in understand(PermissionDeniedError(refusal(403, "SignatureDoesNotMatch"))).hint
    assert "room" in understand(GenericError(refusal(507))).hint


def test_urls() -> None:
    assert split_url("s3://bucket/a/b/") == ("bucket", "a/b")
    assert split_url("s3://bucket") == ("bucket", "")
    for wrong in (
        "s3:///a",
        "s3://user:pw@bucket/a",
        "s3://bucket:80/a",
        "s3://bucket/a//b",
        "s3://b/../a",
        "s3://b/a?x",
    ):
        with pytest.raises(UsageError):
            split_url(wrong)
        with pytest.raises(UsageError):
            Store.open(wrong)


def test_settings_before_environment_before_files(tmp_path: Path) -> None:
    (tmp_path / "credentials").write_text("[default]\naws_access_key_id = filed\naws_secret_access_key = f\n")
    (tmp_path / "config").write_text("[default]\nregion = filed-1\nendpoint_url = https://filed\n")
    files = {"AWS_CONFIG_FILE": f"{tmp_path}/config", "AWS_SHARED_CREDENTIALS_FILE": f"{tmp_path}/credentials"}
    client, endpoint = connect("b", "p", S3Access(), files)
    assert endpoint == "https://filed"
    assert (client.config["region"], client.config["access_key_id"]) == ("filed-1", "filed")
    around = files | {"AWS_REGION": "around-1", "AWS_ENDPOINT_URL": "https://around", "AWS_ACCESS_KEY_ID": "around"}
    client, endpoint = connect("b", "p", S3Access(), around)
    assert (endpoint, client.config["region"]) == ("https://around", "around-1")
    given = S3Access("https://given", "given-1", "given", Secret("hush"))
    client, endpoint = connect("b", "p", given, around)
    assert (endpoint, client.config["region"], client.config["access_key_id"]) == ("https://given", "given-1", "given")
    assert "hush" not in repr(given)
    _, endpoint = connect("b", "p", S3Access(), {})
    assert endpoint == "AWS, region us-east-1"


def test_settings_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(SecretError, match="go together"):
        connect("b", "p", S3Access(access_key_id="only"), {})
    with pytest.raises(SecretError, match="nowhere"):
        connect("b", "p", S3Access(), {"AWS_PROFILE": "nowhere"})
    (tmp_path / "config").write_text("no section\n")
    with pytest.raises(SecretError, match="config"):
        connect("b", "p", S3Access(), {"AWS_CONFIG_FILE": f"{tmp_path}/config"})
    with pytest.raises(UsageError, match="endpoint"):
        connect("b", "p", S3Access(endpoint="localhost:9000"), {})
    with pytest.raises(UsageError):
        S3Backend("b", "p", S3Access(ca=b"no certificate"))


def test_an_authority_that_only_the_settings_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a server in one's own house has it; from the job, the environment, or the profile."""
    context, pem = private_authority(tmp_path)
    (tmp_path / "ca.pem").write_bytes(pem)
    (tmp_path / "config").write_text(f"[default]\nca_bundle = {tmp_path}/ca.pem\n")
    with faulty_server(context) as server:

        def backend(ca: bytes | None = None) -> S3Backend:
            endpoint = f"https://127.0.0.1:{server.port}"
            return S3Backend("bucket", "store", S3Access(endpoint, "us-east-1", "k", Secret("s"), ca=ca, retry_for=0.1))

        with pytest.raises(StoreIoError, match=f"127.0.0.1:{server.port}") as caught:
            backend().put("a", b"1")
        assert "certificate" in str(caught.value)
        assert "ca-file" in caught.value.hint and "AWS_CA_BUNDLE" in caught.value.hint
        assert backend(pem).put("a", b"1")
        monkeypatch.setenv("AWS_CONFIG_FILE", f"{tmp_path}/config")
        assert backend().put("b", b"1")
        monkeypatch.delenv("AWS_CONFIG_FILE")
        monkeypatch.setenv("AWS_CA_BUNDLE", f"{tmp_path}/ca.pem")
        assert backend().put("c", b"1")
        monkeypatch.setenv("AWS_CA_BUNDLE", f"{tmp_path}/nothing")
        with pytest.raises(SecretError, match="AWS_CA_BUNDLE"):
            backend()


JOB = """
[pool]
url = "https://xcp"
username = "root"
password-env = "P"
[[vms]]
all = true
[store]
"""


@pytest.mark.parametrize(
    ("store", "allowed"),
    [
        ('url = "file:///x"\nendpoint = "https://s3"', "only for s3://"),
        ('url = "s3://b/x"\naccess-key-id = "k"', "together with its secret"),
        ('url = "s3://b/x"\nsecret-access-key-env = "K"', "together with"),
        ('url = "s3://b/x"\naccess-key-id = "k"\nsecret-access-key = "s"', "never stands in the job file"),
        (
            'url = "s3://b/x"\naccess-key-id = "k"\nsecret-access-key-env = "S"\nsecret-access-key-file = "/s"',
            "one of secret-access-key-file",
        ),
    ],
)
def test_jobs_that_cannot_be(store: str, allowed: str) -> None:
    with pytest.raises(JobError, match=allowed):
        parse_job(JOB + store, "job.toml", "job")


def test_copies_are_made_once_and_checked(tmp_path: Path) -> None:
    now = [1e9]
    content = noise("segment", 300_000)
    backend = MemoryBackend({"index/0/a.1": content, "index/0/a.10": b"", "index/1/b.0": noise("b", 17 << 20)})
    copies = LocalCopies(backend, tmp_path / "cache", lambda: now[0])
    assert copies.map("index/0/a.1") == content
    assert copies.map("index/0/a.10") == b""
    assert copies.map("index/1/b.0") == backend.objects["index/1/b.0"]
    with pytest.raises(ObjectMissingError):
        copies.map("index/0/c.0")
    backend.objects["index/0/a.1"] = b"something else"
    assert copies.map("index/0/a.1") == content, "objects never change, so a copy does for it"
    (copy,) = tmp_path.glob("cache/index+0+a.1@*")
    copy.write_bytes(b"\0" + content[1:])
    now[0] = copy.stat().st_mtime + 86401
    assert copies.map("index/0/a.1") == b"something else", "once a day it is compared with its checksum"
    mapped = copies.map("index/1/b.0")
    copies.renew()
    assert list(tmp_path.glob("cache/*")) == []
    assert mapped == backend.objects["index/1/b.0"], "who has it mapped keeps it"


def test_copies_that_nobody_uses_go(tmp_path: Path) -> None:
    backend = MemoryBackend({"index/0/a.1": b"1", "index/0/a.2": b"2", "index/0/a.3": b"3"})
    copies = LocalCopies(backend, tmp_path / "cache" / "store")
    for key in ("index/0/a.1", "index/0/a.2"):
        copies.map(key)
    (tmp_path / "cache" / "store" / "0123456789abcdef.partial").write_bytes(b"of a process that died")
    (tmp_path / "cache" / "store" / "not ours").write_bytes(b"")
    for path in tmp_path.glob("cache/store/*"):
        if "a.2" not in path.name:
            os.utime(path, (0, 0))
    copies.map("index/0/a.3")
    names = {path.name.split("@")[0] for path in tmp_path.glob("cache/store/*")}
    assert names == {"index+0+a.2", "index+0+a.3", "not ours"}


def test_copies_need_room(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    copies = LocalCopies(MemoryBackend({"a": b"1"}), tmp_path / "file" / "store")
    with pytest.raises(StoreIoError) as caught:
        copies.map("a")
    assert "XDG_CACHE_HOME" in caught.value.hint
    assert cache_directory().endswith("/cache/mover")


@pytest.mark.parametrize("tuning", [LOCAL, REMOTE])
def test_several_at_once_in_order(tuning: object) -> None:
    assert list(at_once(tuning, lambda number: number * 2, range(100))) == list(range(0, 200, 2))  # type: ignore[arg-type]
    seen: list[int] = []

    def work(number: int) -> int:
        seen.append(number)
        return 1 // (number - 5)

    with pytest.raises(ZeroDivisionError):
        list(at_once(tuning, work, range(10_000)))  # type: ignore[arg-type]
    assert len(seen) < 200
