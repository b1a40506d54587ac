"""That the comparison of the simulated classes with the data model can fail, and which error codes may be used at all.

tests/data/xenapi.json is the part of the servers' data model about the simulated classes, tests/data/xenapi_errors.json
every error code that any call of the whole model declares.
"""

from __future__ import annotations

import ast
import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mover.simulator import Options, Simulator
from mover.simulator.fields import all_classes
from mover.simulator.signature import Signature

ROOT = Path(__file__).parents[2]
MODEL: dict[str, Any] = json.loads((ROOT / "tests/data/xenapi.json").read_text())
DECLARED = set(json.loads((ROOT / "tests/data/xenapi_errors.json").read_text()))

# Codes of xen-api ocaml/xapi-consts/api_errors.ml that no call declares: errors of the dispatcher, of HTTP handlers,
# and those that calls raise without saying so.
UNDECLARED = set(
    """
    DEFAULT_SR_NOT_FOUND DEVICE_ALREADY_ATTACHED DEVICE_ALREADY_EXISTS DUPLICATE_MAC_SEED
    EVENT_FROM_TOKEN_PARSE_FAILURE EVENT_SUBSCRIPTION_PARSE_FAILURE FEATURE_RESTRICTED FIELD_TYPE_ERROR
    HANDLE_INVALID HOST_CANNOT_SEE_SR HOST_OFFLINE HOST_STILL_BOOTING IMPORT_ERROR IMPORT_ERROR_CANNOT_HANDLE_CHUNKED
    IMPORT_ERROR_FAILED_TO_FIND_OBJECT IMPORT_ERROR_PREMATURE_EOF IMPORT_ERROR_SOME_CHECKSUMS_FAILED
    IMPORT_ERROR_UNEXPECTED_FILE IMPORT_INCOMPATIBLE_VERSION INVALID_DEVICE MAC_INVALID MAP_DUPLICATE_KEY
    MESSAGE_METHOD_UNKNOWN MESSAGE_PARAMETER_COUNT_MISMATCH MESSAGE_REMOVED OPERATION_BLOCKED RBAC_PERMISSION_DENIED
    SESSION_INVALID TASK_CANCELLED UUID_INVALID VBD_CDS_MUST_BE_READONLY VDI_CBT_ENABLED VDI_CONTENT_ID_MISSING
    VDI_IO_ERROR VDI_IS_SHARABLE VDI_LOCATION_MISSING VDI_NOT_MANAGED VDI_TOO_LARGE VM_IS_SNAPSHOT VM_NO_SUSPEND_SR
    VM_TO_IMPORT_IS_NOT_NEWER_VERSION VTPM_MAX_AMOUNT_REACHED
    """.split()
)
# No code of the servers: how an asynchronous call of what has no such form is refused.
FAULT = "Fault"


@pytest.fixture
async def calls(tmp_path: Path) -> list[Signature]:
    async with Simulator(tmp_path, Options(tls=False, hosts=1)) as simulator:
        return simulator.calls.signatures()


def differences(calls: list[Signature], model: dict[str, Any]) -> Iterator[str]:
    """Everything in which the simulated classes are not as `model` says."""
    for name, cls in all_classes().items():
        ours = {f.name: {"type": str(f.type), "qualifier": f.qualifier} for f in cls.fields.values()}
        theirs = model[name]["fields"]
        yield from (f"{name}.{field}" for field in ours.keys() | theirs.keys() if ours.get(field) != theirs.get(field))
    for call in calls:
        cls_name, _, message = call.name.partition(".")
        declared = model[cls_name]["messages"].get(message)
        if call.hidden:
            continue
        session = [["session_id", "session ref"]] if call.session else []
        params = session + [[param.name, str(param.type)] for param in call.params]
        if declared is None or declared["params"] != params or declared["result"] != str(call.result):
            yield f"{call.name}()"


def test_nothing_differs(calls: list[Signature]) -> None:
    assert len(calls) > 700
    assert sorted(differences(calls, MODEL)) == []


def drop_field(model: dict[str, Any]) -> None:
    del model["VDI"]["fields"]["cbt_enabled"]


def add_field(model: dict[str, Any]) -> None:
    model["VDI"]["fields"]["colour"] = {"qualifier": "RW", "type": "string"}


def retype_field(model: dict[str, Any]) -> None:
    model["VDI"]["fields"]["virtual_size"]["type"] = "string"


def requalify_field(model: dict[str, Any]) -> None:
    model["VDI"]["fields"]["name_label"]["qualifier"] = "RW"


def rename_parameter(model: dict[str, Any]) -> None:
    model["VDI"]["messages"]["list_changed_blocks"]["params"][1][0] = "vdi_old"


def retype_parameter(model: dict[str, Any]) -> None:
    model["VDI"]["messages"]["resize"]["params"][2][1] = "string"


def change_result(model: dict[str, Any]) -> None:
    model["VDI"]["messages"]["get_nbd_info"]["result"] = "string set"


def drop_call(model: dict[str, Any]) -> None:
    del model["VDI"]["messages"]["data_destroy"]


@pytest.mark.parametrize(
    ("doctor", "seen"),
    [
        (drop_field, "VDI.cbt_enabled"),
        (add_field, "VDI.colour"),
        (retype_field, "VDI.virtual_size"),
        (requalify_field, "VDI.name_label"),
        (rename_parameter, "VDI.list_changed_blocks()"),
        (retype_parameter, "VDI.resize()"),
        (change_result, "VDI.get_nbd_info()"),
        (drop_call, "VDI.data_destroy()"),
    ],
)
def test_a_model_that_says_otherwise_is_noticed(
    calls: list[Signature], doctor: Callable[[dict[str, Any]], None], seen: str
) -> None:
    model = copy.deepcopy(MODEL)
    doctor(model)
    assert list(differences(calls, model)) == [seen]


def test_every_code_we_answer_with_is_one_of_the_servers() -> None:
    used = set(codes_in_source())
    assert len(used) > 40, "the way in which errors are raised has changed"
    assert used - DECLARED - UNDECLARED == {FAULT}
    assert not DECLARED & UNDECLARED


def test_every_code_a_call_announces_is_one_of_the_servers(calls: list[Signature]) -> None:
    announced = {error for call in calls for error in call.errors}
    assert announced - DECLARED - UNDECLARED == set()


def codes_in_source() -> Iterator[str]:
    """The first argument of every `Failure(…)` in the simulator that is written out."""
    for path in (ROOT / "mover/simulator").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Failure":
                first = node.args[0]
                if isinstance(first, ast.Constant):
                    yield first.value
