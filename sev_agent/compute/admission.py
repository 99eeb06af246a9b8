"""Whether this host can run a guest, asked before anything of it is claimed or started."""

import asyncio
from collections.abc import Callable, Mapping

from sev_agent.compute.firmware_version import Version
from sev_agent.errors import Exhausted, SevAgentError
from sev_agent.hypervisor.free_memory import available_mb
from sev_agent.sev.footprint import guest_footprint_mb
from sev_agent.sev.generation import Generation
from sev_agent.sev.policy import Policy, SnpFlag, SnpPolicy, version_key


class GenerationUnavailable(SevAgentError):
    """A generation that guests are asked for, and that the host cannot run; another may."""

    code = "host.generation_unavailable"
    retryable = True


class PolicyUnmet(SevAgentError):
    """A guest policy that the firmware would refuse on this host; another may meet it."""

    code = "host.policy_unmet"
    retryable = True


class MemoryShort(Exhausted):
    """The host has not enough free memory for the guest now, whatever Placement counts."""

    code = "host.memory_short"


class Admission:
    """What the host can run, as it was last looked at.

    ``overhead_mb`` is what a guest takes beside its RAM and its page tables; ``free_mb`` tells what the host has left.
    """

    def __init__(self, *, overhead_mb: int, free_mb: Callable[[], int | None] = available_mb) -> None:
        self._overhead_mb = overhead_mb
        self._free_mb = free_mb
        self._unusable: Mapping[Generation, str] = {}
        self._smt: bool | None = None
        self._one_socket: bool | None = None
        self._firmware: Version | None = None

    def learn(
        self,
        unusable: Mapping[Generation, str],
        *,
        smt: bool | None = None,
        one_socket: bool | None = None,
        firmware: Version | None = None,
    ) -> None:
        """Take note of the generations that the host cannot run, and why, and of what policies may ask of it.

        ``smt`` is whether its cores have two threads, ``firmware`` the API version of its secure processor; ``None``
        refuses nothing.
        """
        self._unusable = unusable
        self._smt = smt
        self._one_socket = one_socket
        self._firmware = firmware

    def check_policy(self, policy: Policy) -> None:
        """Raises ``PolicyUnmet`` where the firmware would refuse ``policy`` on this host.

        Sources: AMD 55766, "LAUNCH_START" (version); AMD 56860, "SNP_LAUNCH_START" (version, SMT) and "SNP_ACTIVATE",
        by which Linux gives a guest to the cores of every socket.
        """
        self._check_version(policy)
        if not isinstance(policy, SnpPolicy):
            return
        if SnpFlag.SMT not in policy.flags and self._smt:
            raise _unmet(
                f"policy {policy} wants a host without SMT, and the cores of this one have two threads",
                "add smt to the policy, use another host, or switch SMT off on this one (BIOS, or nosmt)",
            )
        if SnpFlag.SINGLE_SOCKET in policy.flags and self._one_socket is False:
            raise _unmet(
                f"policy {policy} wants a host with one socket, and this one has more",
                "remove single_socket from the policy, or use another host",
            )

    def _check_version(self, policy: Policy) -> None:
        least = _least_version(policy)
        if self._firmware is None or least <= self._firmware:
            return
        key = version_key(policy.generation)
        raise _unmet(
            f"policy {policy} wants firmware {_text(least)} or newer ({key}={_text(least)}), and that of this host's"
            f" secure processor is {_text(self._firmware)}",
            f"lower {key}= in the policy, update the firmware (a newer BIOS, or linux-firmware's amd/amd_sev_*.sbin),"
            " or use another host",
        )

    async def check(self, generation: Generation, memory_mb: int) -> None:
        """Raises ``GenerationUnavailable``, or ``MemoryShort`` for a guest with ``memory_mb`` MiB of RAM."""
        if (why := self._unusable.get(generation)) is not None:
            raise GenerationUnavailable(
                f"this host cannot run a guest of {generation}: {why}",
                remedy=f"use another host, or mend this one: sev-agent check --generation {generation}",
            )
        needed = guest_footprint_mb(memory_mb, self._overhead_mb)
        free = await asyncio.to_thread(self._free_mb)
        # The memory of an encrypted guest is taken at its start, all of it, and cannot be swapped.
        if free is not None and free < needed:
            raise MemoryShort(
                f"a guest with {memory_mb} MiB of RAM takes {needed} MiB, and this host has {free} MiB free",
                field="instance.flavor.memory_mb",
                remedy="free memory on this host, raise placement.reserved_host_memory_mb, or use another host",
            )


def _least_version(policy: Policy) -> Version:
    if isinstance(policy, SnpPolicy):
        return policy.abi_major, policy.abi_minor
    return policy.api_major, policy.api_minor


def _text(version: Version) -> str:
    return f"{version[0]}.{version[1]}"


def _unmet(message: str, remedy: str) -> PolicyUnmet:
    return PolicyUnmet(message, field="instance.flavor.extra_specs.hw:mem_encryption_policy", remedy=remedy)
