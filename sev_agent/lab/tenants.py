"""Who tries the lab's cloud: two projects, and in each a user of every role."""

import hashlib
from dataclasses import dataclass

PROJECTS = ("red", "blue")
ROLES = ("member", "reader", "admin")


@dataclass(frozen=True, slots=True)
class Tenant:
    """A user of one project, with one role in it."""

    project: str
    role: str

    @property
    def name(self) -> str:
        return f"{self.project}-{self.role}"

    def password(self, lab_password: str) -> str:
        """A password of the user's own: none can speak as another."""
        return hashlib.blake2b(self.name.encode(), key=lab_password.encode(), digest_size=12).hexdigest()


TENANTS = tuple(Tenant(project, role) for project in PROJECTS for role in ROLES)
