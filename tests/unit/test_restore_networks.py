"""Which network of a pool takes the place of a saved one."""

import pytest

from mover.errors import NotFoundError
from mover.restore.networks import match_networks


def network(uuid: str, name: str, *pifs: str) -> dict:
    return {"uuid": uuid, "name_label": name, "PIFs": list(pifs)}


SAVED = {"old:lan": network("u-lan", "lan", "old:pif"), "old:dmz": network("u-dmz", "dmz", "old:vlan7")}
SAVED_PIFS = {"old:pif": {"VLAN": "-1"}, "old:vlan7": {"VLAN": "7"}}


def test_the_uuid_decides_whatever_the_name():
    present = {"a": network("u-x", "lan"), "b": network("u-lan", "renamed"), "c": network("u-dmz", "dmz")}
    assert match_networks(SAVED, SAVED_PIFS, present, {}, {}) == {"old:lan": "b", "old:dmz": "c"}


def test_without_the_uuid_name_and_vlan_have_to_agree():
    present = {
        "a": network("1", "lan", "p1"),
        "wrong-vlan": network("2", "dmz", "p2"),
        "right-vlan": network("3", "dmz", "p3"),
    }
    pifs = {"p1": {"VLAN": "-1"}, "p2": {"VLAN": "8"}, "p3": {"VLAN": "7"}}
    assert match_networks(SAVED, SAVED_PIFS, present, pifs, {}) == {"old:lan": "a", "old:dmz": "right-vlan"}


def test_what_was_asked_for_wins():
    present = {"a": network("u-lan", "lan"), "b": network("2", "lab")}
    wanted = {"lan": "lab", "u-dmz": "u-lan"}
    assert match_networks(SAVED, SAVED_PIFS, present, {}, wanted) == {"old:lan": "b", "old:dmz": "a"}


def test_every_missing_network_is_named_at_once():
    with pytest.raises(NotFoundError) as caught:
        match_networks(SAVED, SAVED_PIFS, {"a": network("9", "other")}, {}, {})
    assert "dmz, lan" in str(caught.value)
    assert "other" in caught.value.hint


def test_a_wish_that_does_not_exist_is_missing_even_if_the_uuid_would_match():
    present = {"a": network("u-lan", "lan"), "c": network("u-dmz", "dmz")}
    with pytest.raises(NotFoundError, match="nowhere"):
        match_networks(SAVED, SAVED_PIFS, present, {}, {"lan": "nowhere"})


def test_a_wish_about_a_network_that_the_vm_was_not_on_is_refused():
    """Misspelt, it would leave the VM on the network that it was to be kept from."""
    present = {"a": network("u-lan", "lan"), "b": network("u-dmz", "dmz")}
    with pytest.raises(NotFoundError, match="the VM was on no network lam") as caught:
        match_networks(SAVED, SAVED_PIFS, present, {}, {"lam": "dmz", "dmz": "lan"})
    assert caught.value.hint == "its networks were: dmz, lan"


def test_a_name_that_two_networks_have_is_not_guessed():
    present = {"a": network("u-lan", "lan"), "b": network("u-dmz", "dmz"), "c": network("1", "lab")}
    present["d"] = network("2", "lab")
    with pytest.raises(NotFoundError, match="the pool has 2 networks called lab") as caught:
        match_networks(SAVED, SAVED_PIFS, present, {}, {"lan": "lab"})
    assert caught.value.hint == "name one by its UUID: 1, 2"
    assert match_networks(SAVED, SAVED_PIFS, present, {}, {"lan": "2"})["old:lan"] == "d"
