"""What the models of answers are made of."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Uuid = Annotated[str, Field(json_schema_extra={"format": "uuid"})]
Texts = dict[str, str]


class Part(BaseModel):
    """An answer's body, or a part of it: with these fields and no others."""

    model_config = ConfigDict(strict=True, extra="forbid")


class Link(Part):
    rel: Literal["self", "bookmark", "next"]
    href: str
