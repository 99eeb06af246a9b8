"""What the operations on key pairs answer."""

from typing import Literal

from pydantic import Field

from sev_agent.api.answer_parts import Link, Part


class BriefKeypair(Part):
    name: str
    public_key: str
    fingerprint: str
    type: Literal["ssh"] = "ssh"


class MadeKeypair(BriefKeypair):
    user_id: str


class DetailedKeypair(MadeKeypair):
    deleted: bool
    created_at: str
    updated_at: None
    deleted_at: None


class ImportedKeypair(Part):
    keypair: MadeKeypair


class OneKeypair(Part):
    keypair: DetailedKeypair


class ListedKeypair(Part):
    keypair: BriefKeypair


class Keypairs(Part):
    keypairs: list[ListedKeypair]
    keypairs_links: list[Link] = Field(default=[])
