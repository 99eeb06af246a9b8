"""The addresses of servers: what is known of their NICs when they are made, and how answers show it."""

from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from typing import Any, Final

from sev_agent.schema import Instance, Network, NetworkKind, derived_mac

USER_ADDRESS: Final = "10.0.2.15"
"""What QEMU's own network gives to the one guest on it. Source: QEMU's "System Emulation: Network", slirp."""

USER_LABEL: Final = "user"


def known_nics(instance: Instance) -> list[dict[str, Any]]:
    """The NICs as a row keeps them: ``network`` is the label, ``address`` null where only the guest knows it."""
    return [
        {
            "network": network.source or USER_LABEL,
            "mac": network.mac or derived_mac(instance.uuid, index),
            "address": _address(network),
        }
        for index, network in enumerate(instance.networks)
        if network.type is not NetworkKind.NONE
    ]


def by_label(kept: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The ``addresses`` of a server, with all that the extensions of Nova's API say of each."""
    found: dict[str, list[dict[str, Any]]] = {}
    for nic in kept:
        if nic["address"] is not None:
            version = ip_address(nic["address"]).version
            extended = {"OS-EXT-IPS:type": "fixed", "OS-EXT-IPS-MAC:mac_addr": nic["mac"]}
            found.setdefault(nic["network"], []).append({"addr": nic["address"], "version": version, **extended})
    return found


def access_address(kept: Sequence[Mapping[str, Any]], version: int) -> str:
    """The first address of that IP version, or nothing.

    As Nova with ``default_access_ip_network_name``: clients that find none look for a floating one, which no one has.
    """
    addresses = (nic["address"] for nic in kept if nic["address"] is not None)
    return next((address for address in addresses if ip_address(address).version == version), "")


def _address(network: Network) -> str | None:
    if network.address is not None:
        return str(network.address.interface.ip)
    return USER_ADDRESS if network.type is NetworkKind.USER else None
