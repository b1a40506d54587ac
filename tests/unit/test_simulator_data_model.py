"""Every implemented class against the servers' data model (tests/data/xenapi.json, reduced to those classes)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mover.simulator import XCP_NG_8_2, XCP_NG_8_3, XENSERVER_7_1, XENSERVER_7_6, Options, Release, Simulator
from mover.simulator.fields import all_classes
from mover.simulator.signature import Signature

MODEL: dict[str, Any] = json.loads((Path(__file__).parents[1] / "data" / "xenapi.json").read_text())
CLASSES = all_classes()
SETTERS = ("set", "add", "remove")
# Codes the servers use without declaring them for the call.
UNDECLARED = {
    "VDI.enable_cbt": {"LICENCE_RESTRICTION"},
    "VDI.set_on_boot": {"VDI_CBT_ENABLED"},
    "VM.checkpoint": {"LICENCE_RESTRICTION"},
}


async def signatures(folder: Path, release: Release = XCP_NG_8_3) -> dict[str, Signature]:
    async with Simulator(folder, Options(release=release)) as simulator:
        return {signature.name: signature for signature in simulator.calls.signatures()}


@pytest.mark.parametrize("cls", CLASSES)
def test_fields_are_those_of_the_model(cls: str) -> None:
    ours = {f.name: {"type": str(f.type), "qualifier": f.qualifier} for f in CLASSES[cls].fields.values()}
    assert ours == MODEL[cls]["fields"]


@pytest.mark.parametrize("cls", CLASSES)
def test_defaults_of_enums_are_members(cls: str) -> None:
    enums = MODEL[cls]["enums"]
    for field in CLASSES[cls].fields.values():
        if field.type.kind == "enum" and field.default and field.type.of in enums:
            assert field.default in enums[field.type.of], field.name


async def test_calls_are_those_of_the_model(tmp_path: Path) -> None:
    for name, signature in (await signatures(tmp_path)).items():
        if signature.hidden:
            continue
        declared = MODEL[signature.cls]["messages"][name.partition(".")[2]]
        params = [[param.name, str(param.type)] for param in signature.params]
        expected = [param for param in declared["params"] if param[0] != "session_id"]
        assert params == expected, name
        assert signature.session == (len(expected) < len(declared["params"])), name
        # A field that went away stays in records, and its getter answers.
        assert not declared["removed"] or signature.removed or name.partition(".")[2].startswith("get_"), name


async def test_results_are_those_of_the_model(tmp_path: Path) -> None:
    for name, signature in (await signatures(tmp_path)).items():
        if not signature.hidden:
            declared = MODEL[signature.cls]["messages"][name.partition(".")[2]]["result"]
            assert str(signature.result) == declared, name


async def test_every_generic_call_of_the_model_is_there(tmp_path: Path) -> None:
    ours = await signatures(tmp_path)
    missing = [name for name in _generic_calls() if name not in ours]
    assert missing == []


async def test_hidden_calls_are_not_in_the_model(tmp_path: Path) -> None:
    hidden = [name for name, signature in (await signatures(tmp_path)).items() if signature.hidden]
    for name in hidden:
        cls, _, message = name.partition(".")
        assert message not in MODEL[cls]["messages"], name
    assert "VTPM.get_contents" in hidden


async def test_declared_errors_are_declared_there_too(tmp_path: Path) -> None:
    """What a call of the model declares and ours raises on its own account; the rest is common to all calls."""
    known = {error for cls in MODEL.values() for message in cls["messages"].values() for error in message["errors"]}
    for name, signature in (await signatures(tmp_path)).items():
        declared = set(MODEL[signature.cls]["messages"].get(name.partition(".")[2], {"errors": []})["errors"])
        for error in set(signature.errors) - declared - UNDECLARED.get(name, set()):
            assert error not in known or not declared, f"{name} raises {error}, declared elsewhere only"


def test_codes_in_the_source_look_like_codes_of_the_model() -> None:
    """Every code of a call's declaration in the model that we write is spelt as there."""
    known = {error for cls in MODEL.values() for message in cls["messages"].values() for error in message["errors"]}
    source = "".join(path.read_text() for path in Path("mover/simulator").glob("*.py"))
    ours = set(re.findall(r'Failure\(\s*"([A-Z_]+)"', source))
    squeezed = {re.sub("[^A-Z]", "", code): code for code in known}
    for code in ours:
        assert squeezed.get(re.sub("[^A-Z]", "", code), code) == code


@pytest.mark.parametrize(
    ("release", "absent", "snapshot_params"),
    [
        (XCP_NG_8_3, set(), 3),
        (XCP_NG_8_2, set(), 2),
        (XENSERVER_7_6, set(), 2),
        (XENSERVER_7_1, {"VDI.enable_cbt", "VDI.get_cbt_enabled", "VDI.get_nbd_info", "network.add_purpose"}, 2),
    ],
    ids=lambda value: value.version if isinstance(value, Release) else None,
)
async def test_releases_differ_in_their_calls(
    tmp_path: Path, release: Release, absent: set[str], snapshot_params: int
) -> None:
    ours = await signatures(tmp_path, release)
    assert not absent & ours.keys()
    assert len(ours["VM.snapshot"].params) == snapshot_params
    assert ours["VM.snapshot_with_quiesce"].removed != release.quiesce


def _generic_calls() -> Iterator[str]:
    """The calls that the servers make from the fields, as the model lists them."""
    for cls in CLASSES:
        model = MODEL[cls]
        for message in model["messages"]:
            verb, _, name = re.sub(r"^(add_to|remove_from)_", r"set_", message).partition("_")
            field = model["fields"].get(name)
            records = message in ("get_record", "get_all", "get_all_records", "get_by_uuid", "get_by_name_label")
            if records or (field and (verb == "get" or (verb in SETTERS and field["qualifier"] == "RW"))):
                yield f"{cls}.{message}"
