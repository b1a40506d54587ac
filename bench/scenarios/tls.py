"""Reading over TLS with a pinned certificate, beside plain reading of the same disk: to nowhere, and into a store."""

from __future__ import annotations

import datetime
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from bench.child import call
from bench.measure import Case, Check, Sample, interleave, ratio, seconds_of
from bench.registry import Scenario, Setting
from bench.servers import nbdkit

BAR = 0.5


def run(setting: Setting) -> Iterator[Case]:
    """One case for each number of connections."""
    image = setting.image()
    with setting.scratch() as scratch:
        _certificate(scratch)
        secure = ("--tls=require", f"--tls-certificates={scratch}")
        with nbdkit("file", str(image)) as plain_port, nbdkit(*secure, "file", str(image)) as tls_port:
            plain = {"ports": [plain_port]}
            tls = {"ports": [tls_port], "certificate": str(scratch / "ca-cert.pem")}
            for connections in (4,) if setting.small else (1, 4):
                yield _case(
                    setting, image, plain, tls, connections, f"nbds://localhost:{tls_port}?tls-certificates={scratch}"
                )
            yield _into_a_store(setting, scratch, plain, tls)
            yield _unchanged(setting, scratch, plain, tls)


def _case(
    setting: Setting, image: Path, plain: dict[str, object], tls: dict[str, object], connections: int, uri: str
) -> Case:
    case = Case(f"TLS and plain, {connections} connections")
    contestants: dict[str, Callable[[], Sample]] = {
        "TLS": lambda: call("read", place=tls, connections=connections),
        "plain": lambda: call("read", place=plain, connections=connections),
    }

    def nbdcopy() -> Sample:
        started = time.perf_counter()
        command = ["nbdcopy", f"--connections={connections}", "--request-size=2097152", uri, "null:"]
        subprocess.run(command, check=True)
        return Sample(time.perf_counter() - started)

    if setting.present(case, "nbdcopy"):
        contestants["nbdcopy, TLS"] = nbdcopy
    samples = interleave(setting.rounds, contestants)
    case.series = seconds_of(samples)
    case.checks.append(Check("TLS / plain", ratio(case.series["plain"], case.series["TLS"]), BAR, unit="x"))
    if "nbdcopy, TLS" in case.series:
        value = ratio(case.series["nbdcopy, TLS"], case.series["TLS"])
        case.checks.append(Check("times as fast as nbdcopy over TLS", value, unit="x"))
    case.check_rss(samples["TLS"])
    case.failures += call("read_and_compare", place=tls, image=str(image), connections=connections).facts["failures"]
    return case


def _into_a_store(setting: Setting, scratch: Path, plain: dict[str, object], tls: dict[str, object]) -> Case:
    """The whole disk into a new store, which is what reading is for."""
    case = Case("a full over TLS and plain, 4 connections")

    def full(place: dict[str, object]) -> Sample:
        shutil.rmtree(scratch / "full", ignore_errors=True)
        return call("back_up", place=place, store=str(scratch / "full"))

    samples = interleave(setting.rounds, {"TLS": lambda: full(tls), "plain": lambda: full(plain)})
    point = full(tls).facts["point"]
    found = call("compare", store=str(scratch / "full"), point=point, images=[str(setting.image())])
    case.failures += found.facts["failures"]
    case.series = seconds_of(samples)
    case.checks.append(Check("a full: TLS / plain", ratio(case.series["plain"], case.series["TLS"]), BAR, unit="x"))
    case.check_rss(samples["TLS"])
    return case


def _unchanged(setting: Setting, scratch: Path, plain: dict[str, object], tls: dict[str, object]) -> Case:
    """A disk that is in the store already is read in full, over TLS and in the clear."""
    case = Case("an unchanged disk over TLS and plain, 4 connections")
    store = str(scratch / "store")
    first = call("back_up", place=plain, store=store).facts

    def again(place: dict[str, object]) -> Sample:
        return call("back_up", place=place, store=store, new=False, compare=first["root"])

    samples = interleave(setting.rounds, {"TLS": lambda: again(tls), "plain": lambda: again(plain)})
    case.failures += [
        f"{who} read something else" for who in samples if samples[who][-1].facts["root"] != first["root"]
    ]
    case.series = seconds_of(samples)
    case.checks.append(
        Check("an unchanged disk: TLS / plain", ratio(case.series["plain"], case.series["TLS"]), BAR, unit="x")
    )
    case.check_rss(samples["TLS"])
    return case


def _certificate(folder: Path) -> None:
    """A self-signed certificate and its key where nbdkit looks for them."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    (folder / "server-cert.pem").write_bytes(pem)
    (folder / "ca-cert.pem").write_bytes(pem)
    (folder / "server-key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


SCENARIOS = (Scenario("tls", "reading over TLS, beside plain reading and nbdcopy over TLS", run),)
