"""The official XenAPI package, as it is, against the simulated pool."""

from __future__ import annotations

import ssl
import xmlrpc.client
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from mover.simulator import Options, Simulator
from mover.simulator.faults import CallFault
from mover.simulator.fields import all_classes
from tests.simulator_fixtures import MiB, in_thread

XenAPI = pytest.importorskip("XenAPI", reason="the XenAPI package is not installed")

CLASSES = all_classes()
LISTED = [name for name, model in CLASSES.items() if model.listed and model.recorded]
NULL = "OpaqueRef:NULL"


@asynccontextmanager
async def logged_in(folder: Path, options: Options | None = None) -> AsyncIterator[tuple[Simulator, Any]]:
    """A pool with a VM of two disks, and a session of the client on it."""
    async with Simulator(folder, options or Options(tls=False)) as simulator:
        simulator.make_vm("web", [4 * MiB, 6 * MiB])
        yield simulator, await in_thread(login, simulator)


def login(simulator: Simulator, host: int = 0, password: str | None = None) -> Any:
    """Blocking, as all of the package is."""
    session = XenAPI.Session(simulator.url_of(host))
    session.xenapi.login_with_password(simulator.username, password or simulator.password, "1.0", "tests")
    return session


def failure_of(function: Any, *arguments: Any) -> list[str]:
    """The details of the Failure that a call raises."""
    with pytest.raises(XenAPI.Failure) as caught:
        function(*arguments)
    details: list[str] = caught.value.details
    return details


async def test_it_logs_in_and_out(tmp_path: Path) -> None:
    async with logged_in(tmp_path) as (simulator, session):

        def work() -> str:
            ref = session.handle
            assert session.xenapi.session.get_originator(ref) == "tests"
            assert (
                session.xenapi.session.get_this_host(ref)
                == session.xenapi.pool.get_all_records().popitem()[1]["master"]
            )
            version: str = session.API_version
            session.xenapi.session.logout()
            return version

        assert await in_thread(work) == "2.21"
        assert simulator.pool.database.refs("session") == []


async def test_it_logs_in_over_tls_with_the_certificate_of_the_host(tmp_path: Path) -> None:
    async with Simulator(tmp_path, Options()) as simulator:
        trust = ssl.create_default_context(cadata=simulator.pool.master.certificate.pem)

        def work() -> list[str]:
            session = XenAPI.Session(simulator.url, transport=xmlrpc.client.SafeTransport(context=trust))
            session.xenapi.login_with_password(simulator.username, simulator.password)
            refs: list[str] = session.xenapi.host.get_all()
            session.xenapi.session.logout()
            with pytest.raises(ssl.SSLCertVerificationError):
                login(simulator)
            return refs

        assert len(await in_thread(work)) == 2


@pytest.mark.parametrize("cls", LISTED)
async def test_records_have_every_field_in_its_type(tmp_path: Path, cls: str) -> None:
    async with logged_in(tmp_path) as (simulator, session):
        simulator.pool.database.create("task", {"name_label": "one to look at"})
        simulator.pool.message("ALARM", "VM", "", "text")
        if not simulator.pool.database.refs(cls):
            simulator.pool.database.create(cls, {})

        def work() -> dict[str, Any]:
            proxy = getattr(session.xenapi, cls)
            records: dict[str, Any] = proxy.get_all_records()
            for ref, record in records.items():
                assert proxy.get_record(ref) == record
                assert proxy.get_by_uuid(record["uuid"]) == ref
            return records

        records = await in_thread(work)
        assert records
        for record in records.values():
            assert record.keys() == CLASSES[cls].fields.keys()
            for name, value in record.items():
                assert kind_fits(CLASSES[cls].fields[name].type.kind, value), (name, value)


def kind_fits(kind: str, value: Any) -> bool:
    """Whether the package shows a value of a kind as it shows the servers': integers as text."""
    if kind == "int":
        return isinstance(value, str) and int(value) is not None
    python = {"bool": bool, "float": float, "datetime": xmlrpc.client.DateTime, "set": list, "map": dict}
    return type(value) is python.get(kind, str)


async def test_fields_are_set_and_maps_are_added_to(tmp_path: Path) -> None:
    async with logged_in(tmp_path) as (_, session):

        def work() -> None:
            x = session.xenapi
            (vm,) = x.VM.get_by_name_label("web")
            x.VM.set_name_description(vm, "<a> & \"b\" 'ü' \n")
            assert x.VM.get_name_description(vm) == "<a> & \"b\" 'ü' \n"
            x.VM.add_to_other_config(vm, "k", "v")
            assert failure_of(x.VM.add_to_other_config, vm, "k", "w") == [
                "MAP_DUPLICATE_KEY",
                "VM",
                "other_config",
                vm,
                "k",
            ]
            x.VM.remove_from_other_config(vm, "k")
            x.VM.remove_from_other_config(vm, "k")
            assert "k" not in x.VM.get_other_config(vm)
            x.VM.add_tags(vm, "t")
            x.VM.add_tags(vm, "t")
            assert x.VM.get_tags(vm).count("t") == 1
            assert x.VM.get_memory_static_max(vm) == str(2 << 30)

        await in_thread(work)


async def test_a_task_is_followed_by_events(tmp_path: Path) -> None:
    async with logged_in(tmp_path) as (_, session):

        def work() -> None:
            x = session.xenapi
            (vm,) = x.VM.get_by_name_label("web")
            token = x.event_from(["task", "vm"], "", 5.0)["token"]
            task = x.Async.VM.snapshot(vm, "snap", [])
            record: dict[str, Any] = {"status": "pending"}
            seen = set()
            while record["status"] == "pending":
                batch = getattr(x.event, "from")(["task", "vm"], token, 5.0)
                token = batch["token"]
                for event in batch["events"]:
                    seen.add((event["class"], event["operation"]))
                    if event["ref"] == task:
                        record = event["snapshot"]
            assert record["status"] == "success"
            assert record["result"] == f"<value>{x.VM.get_by_name_label('snap')[0]}</value>"
            assert {("task", "add"), ("vm", "add"), ("vm", "mod")} <= seen
            assert batch["valid_ref_counts"]["task"] == "1"
            x.task.destroy(task)
            batch = getattr(x.event, "from")(["task"], token, 5.0)
            assert [(e["operation"], "snapshot" in e) for e in batch["events"]] == [("del", False)]

        await in_thread(work)


async def test_a_failed_task_has_the_error_of_the_call(tmp_path: Path) -> None:
    async with logged_in(tmp_path) as (simulator, session):
        simulator.faults.arm(CallFault("VM.snapshot", "SR_BACKEND_FAILURE_44", ("", "full", "")))

        def work() -> None:
            x = session.xenapi
            (vm,) = x.VM.get_by_name_label("web")
            task = x.Async.VM.snapshot(vm, "snap", [])
            while x.task.get_status(task) == "pending":
                getattr(x.event, "from")([f"task/{task}"], "", 5.0)
            assert x.task.get_error_info(task) == ["SR_BACKEND_FAILURE_44", "", "full", ""]
            assert x.task.get_status(task) == "failure"
            assert x.task.get_progress(task) == 1.0

        await in_thread(work)


async def test_a_member_sends_to_the_master(tmp_path: Path) -> None:
    async with logged_in(tmp_path) as (simulator, session):
        master = simulator.pool.master.authority()

        def work() -> None:
            assert failure_of(login, simulator, 1) == ["HOST_IS_SLAVE", master]
            assert failure_of(login, simulator, 1, "wrong") == ["HOST_IS_SLAVE", master]
            member = XenAPI.Session(simulator.url_of(1))
            member._session = session.handle
            assert failure_of(member.xenapi.VM.get_all) == ["HOST_IS_SLAVE", master]

        await in_thread(work)


async def test_it_logs_in_again_by_itself_when_its_session_is_gone(tmp_path: Path) -> None:
    async with logged_in(tmp_path) as (simulator, session):
        before = session.handle
        simulator.expire_sessions()
        assert len(await in_thread(session.xenapi.host.get_all)) == 2
        assert session.handle != before

        def stranger() -> None:
            other = XenAPI.Session(simulator.url)
            other._session = before
            with pytest.raises(xmlrpc.client.Fault, match="You must log in"):
                other.xenapi.host.get_all()

        await in_thread(stranger)


async def test_errors_are_codes_and_parameters(tmp_path: Path) -> None:
    async with logged_in(tmp_path) as (simulator, session):

        def work() -> None:
            x = session.xenapi
            (vm,) = x.VM.get_by_name_label("web")
            assert failure_of(login, simulator, 0, "wrong")[:2] == ["SESSION_AUTHENTICATION_FAILED", "root"]
            assert failure_of(x.VM.get_record, "OpaqueRef:none") == ["HANDLE_INVALID", "VM", "OpaqueRef:none"]
            assert failure_of(x.VM.get_by_uuid, "none") == ["UUID_INVALID", "VM", "none"]
            assert failure_of(x.VM.no_such_thing, vm) == ["MESSAGE_METHOD_UNKNOWN", "VM.no_such_thing"]
            assert failure_of(x.VM.get_record)[:2] == ["MESSAGE_PARAMETER_COUNT_MISMATCH", "VM.get_record"]
            assert failure_of(x.VM.start, vm, False, False) == ["VM_BAD_POWER_STATE", vm, "halted", "running"]
            assert failure_of(x.VDI.create, {})[0] == "INTERNAL_ERROR"

        await in_thread(work)


async def test_integers_go_in_as_text_or_typed(tmp_path: Path) -> None:
    async with logged_in(tmp_path) as (_, session):

        def work() -> None:
            x = session.xenapi
            sr = x.pool.get_default_SR(x.pool.get_all()[0])
            fields = {"SR": sr, "type": "user", "sharable": False, "read_only": False, "other_config": {}}
            for size in ("3000000", 3000000):
                vdi = x.VDI.create({**fields, "virtual_size": size})
                assert x.VDI.get_virtual_size(vdi) == str(4 * MiB)
                x.VDI.destroy(vdi)
            assert failure_of(x.VDI.create, {**fields, "virtual_size": "many"}) == ["FIELD_TYPE_ERROR", "virtual_size"]

        await in_thread(work)


async def test_every_method_in_the_list_is_known(tmp_path: Path) -> None:
    async with logged_in(tmp_path) as (_, session):
        names = await in_thread(session.system.listMethods)
        assert {"VM.snapshot", "VM.get_record", "session.login_with_password"} <= set(names)
        assert not [name for name in names if name.startswith("Async.")]

        def work() -> list[str]:
            discovered = [name for name in names if name.endswith(".get_all_records") and not name.startswith("Async.")]
            for name in discovered:
                getattr(session.xenapi, name)()
            return discovered

        assert sorted(name.partition(".")[0] for name in await in_thread(work)) == sorted(LISTED)
