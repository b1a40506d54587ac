"""Sessions, tasks and events of the simulated pool, over JSON-RPC with the standard library only."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path

import pytest

from mover.simulator import XENSERVER_7_1, Options
from mover.simulator.faults import CallFault
from tests.simulator_fixtures import RpcError, SmallPool, small_pool

NULL = "OpaqueRef:NULL"


@pytest.fixture
async def pool(tmp_path: Path) -> AsyncIterator[SmallPool]:
    async with small_pool(tmp_path / "pool") as pool:
        yield pool


async def refused(awaitable: Awaitable[object], *description: str) -> None:
    with pytest.raises(RpcError) as caught:
        await awaitable
    assert caught.value.description == list(description)


# -- sessions --------------------------------------------------------------------------------------------------------


async def test_a_wrong_password_is_refused(pool: SmallPool) -> None:
    for password in ("wrong", ""):
        with pytest.raises(RpcError) as caught:
            await pool.bare_call("session.login_with_password", "root", password)
        assert caught.value.description[:2] == ["SESSION_AUTHENTICATION_FAILED", "root"]


async def test_a_session_ends_with_its_logout(pool: SmallPool) -> None:
    await pool.call("session.logout")
    await refused(pool.call("VM.get_all"), "SESSION_INVALID", pool.session)


async def test_a_logout_wakes_who_waits_for_events(pool: SmallPool) -> None:
    token = (await pool.call("event.from", ["*"], "", 5.0))["token"]
    other = await pool.bare_call("session.login_with_password", "root", pool.simulator.password)
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(
            refused(pool.call("event.from", ["vm"], token, 60.0), "SESSION_INVALID", pool.session)
        )
        assert await pool.bare_call("VM.get_all", other)
        await pool.call("session.logout")
        await waiting


async def test_sessions_expire(tmp_path: Path) -> None:
    async with small_pool(tmp_path / "idle", Options(tls=False, session_idle=0.0)) as pool:
        await refused(pool.call("VM.get_all"), "SESSION_INVALID", pool.session)
    async with small_pool(tmp_path / "forced") as pool:
        pool.simulator.expire_sessions()
        await refused(pool.call("VM.get_all"), "SESSION_INVALID", pool.session)


async def test_over_the_cap_the_session_idle_for_longest_goes(tmp_path: Path) -> None:
    async with small_pool(tmp_path / "pool", Options(tls=False, sessions_per_originator=2)) as pool:
        login = ("session.login_with_password", "root", pool.simulator.password, "1.0")
        second = await pool.bare_call(*login, "tests")
        await pool.call("pool.get_all")
        third = await pool.bare_call(*login, "tests")
        other = await pool.bare_call(*login, "other tests")
        await refused(pool.bare_call("VM.get_all", second), "SESSION_INVALID", second)
        for session in (pool.session, third, other):
            assert await pool.bare_call("VM.get_all", session)


async def test_members_answer_that_they_are_none_of_your_business(pool: SmallPool) -> None:
    master = pool.simulator.pool.master.authority()
    await refused(pool.bare_call("session.login_with_password", "x", "x", host=1), "HOST_IS_SLAVE", master)
    await refused(pool.call("VM.get_all", host=1), "HOST_IS_SLAVE", master)
    await refused(pool.bare_call("VM.get_all", "OpaqueRef:none", host=1), "SESSION_INVALID", "OpaqueRef:none")


async def test_a_restart_of_the_toolstack_forgets_sessions_and_tasks(pool: SmallPool) -> None:
    task = await pool.call("task.create", "mine", "")
    pool.simulator.restart_toolstack()
    await refused(pool.call("VM.get_all"), "SESSION_INVALID", pool.session)
    pool.session = await pool.bare_call("session.login_with_password", "root", pool.simulator.password)
    await refused(pool.call("task.get_status", task), "HANDLE_INVALID", "task", task)


async def test_a_booting_host_answers_before_it_looks(pool: SmallPool) -> None:
    """An error from before dispatch is a bare array, whatever version was asked for."""
    pool.simulator.pool.master.booting = True
    with pytest.raises(RpcError) as caught:
        await pool.call("VM.get_all")
    assert caught.value.error == ["HOST_STILL_BOOTING"]


# -- calls -----------------------------------------------------------------------------------------------------------


async def test_unknown_calls_and_wrong_arguments(pool: SmallPool) -> None:
    await refused(pool.call("VM.fly", pool.vm), "MESSAGE_METHOD_UNKNOWN", "VM.fly")
    await refused(pool.call("VM.get_record"), "MESSAGE_PARAMETER_COUNT_MISMATCH", "VM.get_record", "1", "0")
    await refused(pool.call("VM.get_record", 5), "FIELD_TYPE_ERROR", "self")
    await refused(pool.call("VM.get_record", "OpaqueRef:x"), "HANDLE_INVALID", "VM", "OpaqueRef:x")
    await refused(pool.call("VM.get_by_uuid", "no-uuid"), "UUID_INVALID", "VM", "no-uuid")
    await refused(pool.call("event.from", ["vm"], "", 5), "FIELD_TYPE_ERROR", "timeout")
    await refused(pool.bare_call("VM.get_all"), "MESSAGE_PARAMETER_COUNT_MISMATCH", "VM.get_all", "0", "-1")
    await refused(pool.bare_call("VM.fly"), "MESSAGE_METHOD_UNKNOWN", "VM.fly")
    await refused(pool.bare_call("VM.fly", "OpaqueRef:x"), "SESSION_INVALID", "OpaqueRef:x")


async def test_parameters_past_one_with_a_default_are_not_looked_at(pool: SmallPool) -> None:
    assert await pool.call("VM.snapshot", pool.vm, "s", [], "what is this")
    await refused(pool.call("VM.snapshot", pool.vm), "MESSAGE_PARAMETER_COUNT_MISMATCH", "VM.snapshot", "2", "1")
    await refused(pool.call("VM.get_uuid", pool.vm, "x"), "MESSAGE_PARAMETER_COUNT_MISMATCH", "VM.get_uuid", "1", "2")


async def test_a_removed_call_is_known_by_name(pool: SmallPool) -> None:
    for method in ("VM.snapshot_with_quiesce", "Async.VM.snapshot_with_quiesce"):
        await refused(pool.call(method, pool.vm, "s"), "MESSAGE_REMOVED")


async def test_names_may_have_an_underscore_for_the_dot(pool: SmallPool) -> None:
    assert await pool.call("VM_get_name_label", pool.vm) == "small"
    assert await pool.call("VM_guest_metrics_get_all") == []
    await refused(pool.call("Async.VM_snapshot", pool.vm, "x"), "MESSAGE_METHOD_UNKNOWN", "VM_snapshot")


async def test_integers_are_numbers_in_json(pool: SmallPool) -> None:
    assert await pool.call("VDI.get_virtual_size", pool.ref(pool.vdis[0])) == 4 << 20
    assert isinstance((await pool.call("VM.get_record", pool.vm))["memory_static_max"], int)


async def test_generic_setters(pool: SmallPool) -> None:
    await pool.call("VM.add_to_other_config", pool.vm, "k", "v")
    await refused(
        pool.call("VM.add_to_other_config", pool.vm, "k", "w"), "MAP_DUPLICATE_KEY", "VM", "other_config", pool.vm, "k"
    )
    assert (await pool.call("VM.get_other_config", pool.vm))["k"] == "v"
    await pool.call("VM.remove_from_other_config", pool.vm, "k")
    await pool.call("VM.remove_from_other_config", pool.vm, "k")
    assert "k" not in await pool.call("VM.get_other_config", pool.vm)
    await pool.call("VM.set_tags", pool.vm, ["a"])
    await pool.call("VM.add_tags", pool.vm, "b")
    await pool.call("VM.remove_tags", pool.vm, "a")
    assert await pool.call("VM.get_tags", pool.vm) == ["b"]
    await pool.call("VM.set_name_label", pool.vm, 'a "name" <with> & more')
    assert await pool.call("VM.get_by_name_label", 'a "name" <with> & more') == [pool.vm]


async def test_queries(pool: SmallPool) -> None:
    query = 'field "name__label" = "small" and not (field "is_a_snapshot" = "true")'
    assert list(await pool.call("VM.get_all_records_where", query)) == [pool.vm]
    assert len(await pool.call("VM.get_all_records_where", "true")) == 4
    with pytest.raises(RpcError, match="INTERNAL_ERROR"):
        await pool.call("VM.get_all_records_where", 'field "x')


async def test_an_old_release_has_neither_calls_nor_fields_for_cbt(tmp_path: Path) -> None:
    async with small_pool(tmp_path / "pool", Options(tls=False, release=XENSERVER_7_1)) as pool:
        vdi = pool.ref(pool.vdis[0])
        for method in ("VDI.get_cbt_enabled", "VDI.enable_cbt", "VDI.get_nbd_info"):
            await refused(pool.call(method, vdi), "MESSAGE_METHOD_UNKNOWN", method)
        assert "cbt_enabled" not in await pool.call("VDI.get_record", vdi)
        too_many = ("VM.snapshot", pool.vm, "s", [])
        await refused(pool.call(*too_many), "MESSAGE_PARAMETER_COUNT_MISMATCH", "VM.snapshot", "2", "3")
        not_supported = ("VM_SNAPSHOT_WITH_QUIESCE_NOT_SUPPORTED", pool.vm, "VSS is not supported")
        await refused(pool.call("VM.snapshot_with_quiesce", pool.vm, "s"), *not_supported)
        assert await pool.call("VM.snapshot", pool.vm, "s")


# -- tasks -----------------------------------------------------------------------------------------------------------


async def test_an_asynchronous_call_gives_a_task_whose_result_is_xml(pool: SmallPool) -> None:
    task = await pool.call("Async.VM.snapshot", pool.vm, "s")
    result = await pool.finished(task)
    snapshots = await pool.call("VM.get_snapshots", pool.vm)
    assert result == f"<value>{snapshots[0]}</value>"
    record = await pool.call("task.get_record", task)
    assert (record["status"], record["progress"], record["error_info"]) == ("success", 1.0, [])
    await pool.call("task.destroy", task)
    await refused(pool.call("task.get_status", task), "HANDLE_INVALID", "task", task)


async def test_a_result_of_nothing_is_empty(pool: SmallPool) -> None:
    assert await pool.task("VDI.enable_cbt", pool.ref(pool.vdis[0])) == ""


async def test_an_asynchronous_failure_is_in_the_task(pool: SmallPool) -> None:
    vdi = pool.ref(pool.vdis[0])
    await refused(pool.task("VDI.destroy", vdi), "VDI_IN_USE", vdi, "destroy")


async def test_getters_have_no_asynchronous_form(pool: SmallPool) -> None:
    without = {"VM.get_all": [], "task.create": ["", ""], "VDI.get_nbd_info": ["x"], "VM.set_tags": ["x", []]}
    for method, parameters in without.items():
        with pytest.raises(RpcError, match="No async mode for this operation"):
            await pool.call(f"Async.{method}", *parameters)


async def test_the_first_completion_wins(pool: SmallPool) -> None:
    task = await pool.call("task.create", "mine", "what it is")
    pool.simulator.pool.tasks.succeed(task, "OpaqueRef:x")
    pool.simulator.pool.tasks.finish(task, "failure", error_info=["LATE"])
    record = await pool.call("task.get_record", task)
    assert (record["status"], record["result"], record["error_info"]) == ("success", "<value>OpaqueRef:x</value>", [])


async def test_a_task_of_ones_own(pool: SmallPool) -> None:
    task = await pool.call("task.create", "mine", "what it is")
    record = await pool.call("task.get_record", task)
    assert (record["status"], record["progress"], record["name_label"]) == ("pending", 0.0, "mine")
    await pool.call("task.set_progress", task, 0.5)
    await pool.call("task.cancel", task)
    record = await pool.call("task.get_record", task)
    assert (record["status"], record["progress"]) == ("pending", 0.5)
    assert list(record["current_operations"].values()) == ["cancel"]
    await pool.call("task.destroy", task)
    assert await pool.call("task.get_status", task) == "pending"
    await pool.call("task.set_status", task, "failure")
    await refused(pool.call("task.get_status", task), "HANDLE_INVALID", "task", task)


async def test_finished_tasks_beyond_the_200th_are_collected(pool: SmallPool) -> None:
    tasks = pool.simulator.pool.tasks
    made = [tasks.create(str(number), "", pool.session, NULL) for number in range(205)]
    for task in made:
        tasks.succeed(task)
    await pool.call("task.create", "one more", "")
    assert len(await pool.call("task.get_all")) == 201


async def test_faults_strike_the_next_call_once(pool: SmallPool) -> None:
    fault = CallFault("VM.snapshot", "SR_BACKEND_FAILURE_44", ("", "There is insufficient space", ""))
    pool.simulator.faults.arm(fault, fault)
    await refused(pool.call("VM.snapshot", pool.vm, "s"), fault.code, *fault.params)
    await refused(pool.task("VM.snapshot", pool.vm, "s"), fault.code, *fault.params)
    assert await pool.call("VM.snapshot", pool.vm, "s")


async def test_an_object_that_is_busy_makes_the_next_call_wait(tmp_path: Path) -> None:
    options = Options(tls=False, durations={"VM.snapshot": 0.2})
    async with small_pool(tmp_path / "pool", options) as pool:
        first = await pool.call("Async.VM.snapshot", pool.vm, "1")
        second = await pool.call("Async.VM.snapshot", pool.vm, "2")
        record = await pool.call("VM.get_record", pool.vm)
        assert record["current_operations"] == {first: "snapshot"}
        assert record["allowed_operations"] == []
        await pool.finished(second)
        assert await pool.call("task.get_status", first) == "success"
        assert (await pool.call("VM.get_record", pool.vm))["current_operations"] == {}


# -- events ----------------------------------------------------------------------------------------------------------


async def test_the_empty_token_gives_everything(pool: SmallPool) -> None:
    batch = await pool.call("event.from", ["*"], "", 5.0)
    assert {event["operation"] for event in batch["events"]} == {"add"}
    assert {"vm", "vdi", "host", "session", "pool"} <= {event["class"] for event in batch["events"]}
    assert batch["valid_ref_counts"]["vm"] == len(await pool.call("VM.get_all"))
    event = next(event for event in batch["events"] if event["ref"] == pool.vm)
    assert event["snapshot"] == await pool.call("VM.get_record", pool.vm)
    assert event["timestamp"] == "0.0"


async def test_nothing_happens_until_the_time_is_over(pool: SmallPool) -> None:
    token = (await pool.call("event.from", ["vm"], "", 5.0))["token"]
    batch = await pool.call("event.from", ["vm"], token, 0.01)
    assert batch["events"] == []
    assert batch["token"] >= token


async def test_changes_are_told_once_and_in_their_last_state(pool: SmallPool) -> None:
    token = (await pool.call("event.from", ["VM"], "", 5.0))["token"]
    for name in ("one", "two", "three"):
        await pool.call("VM.set_name_label", pool.vm, name)
    batch = await pool.call("event.from", ["VM"], token, 5.0)
    assert [(e["operation"], e["ref"], e["snapshot"]["name_label"]) for e in batch["events"]] == [
        ("mod", pool.vm, "three")
    ]


async def test_a_value_that_is_there_already_is_no_change(pool: SmallPool) -> None:
    token = (await pool.call("event.from", ["vm"], "", 5.0))["token"]
    await pool.call("VM.set_name_label", pool.vm, "small")
    assert (await pool.call("event.from", ["vm"], token, 0.01))["events"] == []
    await pool.call("event.inject", "VM", pool.vm)
    (event,) = (await pool.call("event.from", ["vm"], token, 5.0))["events"]
    assert event["operation"] == "mod"


async def test_deletions_have_no_snapshot_and_short_lives_are_not_seen(pool: SmallPool) -> None:
    task = await pool.call("task.create", "mine", "")
    batch = await pool.call("event.from", ["task"], "", 5.0)
    assert batch["valid_ref_counts"] == {"task": 1}
    await pool.call("task.set_status", task, "success")
    await pool.call("task.destroy", task)
    brief = await pool.call("task.create", "brief", "")
    await pool.call("task.set_status", brief, "success")
    await pool.call("task.destroy", brief)
    batch = await pool.call("event.from", ["task"], batch["token"], 5.0)
    assert [(e["operation"], e["ref"], "snapshot" in e) for e in batch["events"]] == [("del", task, False)]
    assert batch["valid_ref_counts"] == {"task": 0}


async def test_one_object_can_be_watched(pool: SmallPool) -> None:
    mine = await pool.call("task.create", "mine", "")
    other = await pool.call("task.create", "other", "")
    classes = [f"task/{mine}"]
    batch = await pool.call("event.from", classes, "", 5.0)
    assert [event["ref"] for event in batch["events"]] == [mine]
    await pool.call("task.set_progress", other, 0.5)
    assert (await pool.call("event.from", classes, batch["token"], 0.01))["events"] == []


async def test_malformed_subscriptions(pool: SmallPool) -> None:
    await refused(pool.call("event.from", ["vm"], "rubbish", 1.0), "EVENT_FROM_TOKEN_PARSE_FAILURE", "rubbish")
    await refused(pool.call("event.from", ["a/b/c"], "", 1.0), "EVENT_SUBSCRIPTION_PARSE_FAILURE", "a/b/c")


async def test_both_sides_of_a_reference_change(pool: SmallPool) -> None:
    token = (await pool.call("event.from", ["*"], "", 5.0))["token"]
    snapshot = await pool.call("VM.snapshot", pool.vm, "s")
    batch = await pool.call("event.from", ["vm", "vdi", "vbd", "sr"], token, 5.0)
    seen = {(e["class"], e["operation"]) for e in batch["events"]}
    assert {("vm", "add"), ("vm", "mod"), ("vdi", "add"), ("vdi", "mod"), ("vbd", "add"), ("sr", "mod")} <= seen
    (mod,) = [e for e in batch["events"] if e["ref"] == pool.vm]
    assert mod["snapshot"]["snapshots"] == [snapshot]


async def test_messages(pool: SmallPool) -> None:
    uuid = await pool.call("VM.get_uuid", pool.vm)
    message = await pool.call("message.create", "NOTE", 3, "VM", uuid, "body <&>")
    found = await pool.call("message.get", "VM", uuid, "19700101T00:00:00Z")
    assert found[message]["body"] == "body <&>"
    assert json.dumps(found[message]["timestamp"]).endswith('Z"')
    await pool.call("message.destroy", message)
    assert await pool.call("message.get_all") == []
