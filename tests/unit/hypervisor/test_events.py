import libvirt  # noqa: TID251 - the tests of the package that may

from sev_agent.hypervisor.events import Lifecycle, LifecycleNames
from sev_agent.hypervisor.survey import _STATES, DomainState, state_of


def test_knows_every_event_that_libvirt_can_send() -> None:
    """Each lifecycle event of the installed libvirt has its own name."""
    names = LifecycleNames()
    numbers = range(libvirt.VIR_DOMAIN_EVENT_CRASHED + 1)
    assert [names.event(number) for number in numbers] == [
        Lifecycle.DEFINED,
        Lifecycle.UNDEFINED,
        Lifecycle.STARTED,
        Lifecycle.SUSPENDED,
        Lifecycle.RESUMED,
        Lifecycle.STOPPED,
        Lifecycle.SHUTDOWN,
        Lifecycle.PMSUSPENDED,
        Lifecycle.CRASHED,
    ]


def test_tells_the_cause_by_libvirts_name() -> None:
    """A domain that was destroyed is told from one whose guest shut down."""
    names = LifecycleNames()
    assert names.detail(Lifecycle.STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_DESTROYED) == "destroyed"
    assert names.detail(Lifecycle.STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN) == "shutdown"
    assert names.detail(Lifecycle.STARTED, libvirt.VIR_DOMAIN_EVENT_STARTED_BOOTED) == "booted"


def test_tolerates_what_a_newer_libvirt_may_send() -> None:
    """An unknown number becomes an unknown event with its number as cause, never an exception."""
    names = LifecycleNames()
    assert names.event(4711) is Lifecycle.UNKNOWN
    assert names.detail(Lifecycle.UNKNOWN, 3) == "3"
    assert names.detail(Lifecycle.STOPPED, 4711) == "4711"


def test_knows_every_state_of_a_domain() -> None:
    """Each of libvirt's states has its own name."""
    assert set(_STATES.values()) == set(DomainState) - {DomainState.STARTING}


def test_domain_that_is_being_started_does_not_run() -> None:
    """While libvirt starts a domain it calls it paused, and no guest runs yet."""
    starting = state_of(libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_STARTING_UP)
    paused = state_of(libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_USER)
    assert (starting, starting.is_active) == (DomainState.STARTING, False)
    assert (paused, paused.is_active) == (DomainState.PAUSED, True)
    assert sorted(_STATES) == list(range(libvirt.VIR_DOMAIN_PMSUSPENDED + 1))
