"""`mover serve` over TLS: read by nbdinfo, nbdcopy and qemu-img, and by nobody who is not trusted."""

import json
import subprocess
from pathlib import Path

import pytest

from mover.cli import main
from tests.disks_fixtures import needs, run
from tests.serve_fixtures import patchy, serving, store_with

pytestmark = needs("openssl", "nbdinfo", "nbdcopy", "qemu-img")
NEW = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]


def signed(folder: Path, name: str, *extensions: str, ca: Path | None = None) -> None:
    """Make NAME-cert.pem and NAME-key.pem, signed by the authority in `ca` or by itself."""
    by = ["-CA", f"{ca}/ca-cert.pem", "-CAkey", f"{ca}/ca-key.pem"] if ca else []
    extra = [word for extension in extensions for word in ("-addext", extension)]
    files = ["-keyout", f"{folder}/{name}-key.pem", "-out", f"{folder}/{name}-cert.pem"]
    subprocess.run([*NEW, *by, "-subj", f"/CN={name}", *files, *extra], check=True, capture_output=True, timeout=60)


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What libnbd and qemu look for: ca-cert.pem, and if they are to show one, client-cert.pem and client-key.pem.

    `trusting` trusts the authority only; `known` has a client's certificate too, `stranger` one it signed itself.
    """
    path = tmp_path_factory.mktemp("pki")
    signed(path, "ca")
    signed(path, "server", "subjectAltName=IP:127.0.0.1", "basicConstraints=critical,CA:FALSE", ca=path)
    for name in ("trusting", "known", "stranger", "elsewhere"):
        (path / name).mkdir()
        (path / name / "ca-cert.pem").write_bytes((path / "ca-cert.pem").read_bytes())
    signed(path / "known", "client", "basicConstraints=critical,CA:FALSE", ca=path)
    signed(path / "stranger", "client")
    signed(path / "elsewhere", "ca")
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("serve") / "store"
    store_with(path, [("data", patchy())]).close()
    return path


def tls(pki: Path) -> list[object]:
    return ["--tls-certificate", pki / "server-cert.pem", "--tls-key", pki / "server-key.pem"]


async def test_over_tls_with_the_authority_alone(store: Path, pki: Path, tmp_path: Path) -> None:
    async with serving(store, "latest", *tls(pki)) as served:
        assert served.uri().startswith("nbds://127.0.0.1:")
        trusting = f"{served.uri()}?tls-certificates={pki}/trusting"
        code, output = await run("nbdinfo", "--json", trusting)
        assert code == 0, output
        assert json.loads(output)["TLS"] is True
        code, output = await run("nbdcopy", "--connections=4", trusting, str(tmp_path / "copy"))
        assert code == 0, output
        assert (tmp_path / "copy").read_bytes() == patchy()
        port = served.uri().removeprefix("nbds://127.0.0.1:").partition("/")[0]
        code, output = await run(
            "qemu-img", "compare", "--object", f"tls-creds-x509,id=tls,dir={pki}/trusting,endpoint=client",
            "--image-opts", f"driver=raw,file.filename={tmp_path}/copy",
            "driver=raw,file.driver=nbd,file.server.type=inet,file.server.host=127.0.0.1,"
            f"file.server.port={port},file.export=0,file.tls-creds=tls",
        )  # fmt: skip
        assert code == 0, output


async def test_nothing_is_said_in_the_clear(store: Path, pki: Path) -> None:
    """Neither the data nor which disks there are."""
    async with serving(store, "latest", *tls(pki)) as served:
        plain = served.uri().replace("nbds:", "nbd:")
        for command in (["nbdinfo", plain], ["nbdinfo", "--list", plain], ["nbdcopy", plain, "null:"]):
            code, output = await run(*command)
            assert code != 0
            assert "data" not in output


async def test_a_client_can_tell_a_server_that_is_not_ours(store: Path, pki: Path) -> None:
    async with serving(store, "latest", *tls(pki)) as served:
        code, output = await run("nbdinfo", f"{served.uri()}?tls-certificates={pki}/elsewhere")
        assert code != 0
        assert "certificate" in output


@pytest.mark.parametrize("who", ["known", "trusting", "stranger"])
async def test_only_clients_with_a_certificate_of_ours_are_let_in(store: Path, pki: Path, who: str) -> None:
    async with serving(store, "latest", *tls(pki), "--tls-client-ca", pki / "ca-cert.pem") as served:
        code, output = await run("nbdinfo", f"{served.uri()}?tls-certificates={pki}/{who}")
        if who == "known":
            assert code == 0, output
        else:
            assert code != 0
            await served.says("warning: a client was turned away: ")
            code, output = await run("nbdinfo", f"{served.uri()}?tls-certificates={pki}/known")
            assert code == 0, output


async def test_on_an_address_others_reach_the_open_door_is_named(store: Path, pki: Path) -> None:
    async with serving(store, "latest", "--address", "0.0.0.0", *tls(pki)) as served:
        await served.says("warning: whoever can reach 0.0.0.0 can read these disks: --tls-client-ca lets in those you")
    async with serving(store, "latest", "--address", "0.0.0.0", "--insecure") as served:
        await served.says("warning: whoever can reach 0.0.0.0 can read these disks")
    client_ca = ["--tls-client-ca", pki / "ca-cert.pem"]
    async with serving(store, "latest", "--address", "0.0.0.0", *tls(pki), *client_ca) as served:
        assert await served.stop() == 143
    assert not any("warning" in line for line in served.said)


def test_what_is_refused(store: Path, pki: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rubbish").write_text("no PEM")
    locked = tmp_path / "locked.pem"
    command = ["openssl", "pkey", "-in", f"{pki}/server-key.pem", "-aes256", "-passout", "pass:x", "-out", locked]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    certificate = ["--tls-certificate", pki / "server-cert.pem"]
    for arguments, words in (
        (["--address", "0.0.0.0"], "error: whoever can reach 0.0.0.0 could read these disks"),
        (["--tls-key", pki / "server-key.pem"], "error: --tls-key goes with --tls-certificate"),
        (["--tls-client-ca", pki / "ca-cert.pem"], "error: --tls-client-ca goes with --tls-certificate"),
        (certificate, "hint: the key is expected in the same file"),
        (["--tls-certificate", tmp_path / "nonesuch"], "nonesuch for TLS: No such file or directory"),
        (["--tls-certificate", tmp_path / "rubbish"], "rubbish for TLS: "),
        ([*certificate, "--tls-key", pki / "ca-key.pem"], "for TLS: key values mismatch"),
        ([*certificate, "--tls-key", locked], f"error: the key in {locked} is encrypted"),
        ([*tls(pki), "--tls-client-ca", tmp_path / "rubbish"], "rubbish to judge clients: "),
    ):
        code = main(["serve", str(store), "latest", "--port", "0", *map(str, arguments)])
        said = capsys.readouterr()
        assert (code, said.out) == (2, ""), (arguments, said.err)
        assert words in said.err
        assert "Traceback" not in said.err
