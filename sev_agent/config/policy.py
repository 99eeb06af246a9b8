"""What an operator demands of guest policies: the API and every host are told it alike."""

from typing import Annotated

from pydantic import AfterValidator

from sev_agent.config.section import Section
from sev_agent.sev.policy import FLAGS, PolicyBounds


def _are_flags(names: tuple[str, ...]) -> tuple[str, ...]:
    if unknown := sorted(set(names) - FLAGS):
        raise ValueError(f"no flag of a guest policy: {', '.join(unknown)}; there are {', '.join(sorted(FLAGS))}")
    return names


PolicyFlags = Annotated[tuple[str, ...], AfterValidator(_are_flags)]


class PolicySection(Section):
    """Flags that the policy of every guest must have, and those that none may have."""

    policy_required: PolicyFlags = ()
    policy_forbidden: PolicyFlags = ("migrate_ma",)

    @property
    def policy_bounds(self) -> PolicyBounds:
        return PolicyBounds(required=frozenset(self.policy_required), forbidden=frozenset(self.policy_forbidden))
