"""What a rule says of a flavor and an image: a line of the table that people read."""

from dataclasses import dataclass

from sev_agent.sev.refusals import RequestRefused, Subject


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One rule, applied: what it expected of which property, what it found, and what to do where they differ."""

    name: str
    subject: Subject
    property_name: str
    expected: str
    found: str
    refusal: RequestRefused | None = None

    @property
    def ok(self) -> bool:
        return self.refusal is None

    @property
    def remedy(self) -> str:
        return (self.refusal.remedy or "") if self.refusal else ""
