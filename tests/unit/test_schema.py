"""What may be asked of a host, and how a bad request is told from a good one."""

import base64
import json
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sev_agent.errors import InvalidRequest
from sev_agent.schema import (
    MAX_USER_DATA,
    BuildArguments,
    ConsoleArguments,
    Instance,
    InstanceArguments,
    NoArguments,
    RescheduleArguments,
    ScheduleArguments,
    parse,
)
from sev_agent.sev.generation import Generation
from tests.requests import instance, requested

MODELS = (BuildArguments, InstanceArguments, ConsoleArguments, NoArguments, ScheduleArguments, RescheduleArguments)

ATTEMPT = {"host": "node1", "code": "slots.none", "message": "every slot is taken"}


def refusal(**changes: Any) -> InvalidRequest:
    """The error of a build that is right but for ``changes``; a path of two names changes the flavor or the image."""
    asked = requested()
    for path, value in changes.items():
        part, _, name = path.partition("__")
        asked |= {part: asked[part] | {name: value}} if name else {part: value}
    with pytest.raises(InvalidRequest) as caught:
        parse(BuildArguments, {"instance": asked})
    return caught.value


def test_good_request() -> None:
    """Every part of a request is in the instance, as it was sent."""
    asked = requested(
        name="web 1.example:a@b+c-d",
        hostname="web-1.example.org",
        networks=[{"type": "bridge", "source": "br0", "mac": "52:54:00:00:00:01"}, {"type": "user"}],
        user_data=base64.b64encode(b"#!/bin/sh\n").decode(),
        public_keys={"me": "ssh-ed25519 AAAA me\n"},
        metadata={"role": "a\tb\nc"},
    )

    parsed = parse(BuildArguments, {"instance": asked}).instance

    assert json.loads(parsed.model_dump_json(exclude_defaults=True)) == asked


def test_uuid_in_any_spelling() -> None:
    """A UUID without dashes or in capitals is the same UUID."""
    for text in ("6B2E1F0A-0F55-4F2E-9C3C-5F6F1A0D7A01", "6b2e1f0a0f554f2e9c3c5f6f1a0d7a01"):
        parsed = parse(InstanceArguments, {"instance_uuid": text})
        assert parsed.instance_uuid == UUID("6b2e1f0a-0f55-4f2e-9c3c-5f6f1a0d7a01")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"uuid": "not-a-uuid"}, "instance.uuid"),
        ({"uuid": 7}, "instance.uuid"),
        ({"name": ""}, "instance.name"),
        ({"name": "<b>"}, "instance.name"),
        ({"name": "a;reboot"}, "instance.name"),
        ({"name": "$(reboot)"}, "instance.name"),
        ({"name": "a\n"}, "instance.name"),
        ({"name": " a"}, "instance.name"),
        ({"name": "a" * 256}, "instance.name"),
        ({"hostname": "-a"}, "instance.hostname"),
        ({"hostname": "a_b"}, "instance.hostname"),
        ({"hostname": "a."}, "instance.hostname"),
        ({"hostname": "a" * 64}, "instance.hostname"),
        ({"flavor__vcpus": 0}, "instance.flavor.vcpus"),
        ({"flavor__vcpus": 256}, "instance.flavor.vcpus"),
        ({"flavor__vcpus": "2"}, "instance.flavor.vcpus"),
        ({"flavor__vcpus": True}, "instance.flavor.vcpus"),
        ({"flavor__vcpus": 1.0}, "instance.flavor.vcpus"),
        ({"flavor__memory_mb": 0}, "instance.flavor.memory_mb"),
        ({"flavor__memory_mb": -512}, "instance.flavor.memory_mb"),
        ({"flavor__memory_mb": 2**40}, "instance.flavor.memory_mb"),
        ({"flavor__root_gb": 0}, "instance.flavor.root_gb"),
        ({"flavor__root_gb": 10**9}, "instance.flavor.root_gb"),
        ({"flavor__extra_specs": {"a": 1}}, "instance.flavor.extra_specs.a"),
        ({"flavor__swap": 1}, "instance.flavor.swap"),
        ({"image__id": "latest"}, "instance.image.id"),
        ({"image": None}, "instance.image"),
        ({"networks": [{"type": "vhost"}]}, "instance.networks.0.type"),
        ({"networks": [{"type": "bridge"}]}, "instance.networks.0"),
        ({"networks": [{"type": "user", "source": "br0"}]}, "instance.networks.0"),
        ({"networks": [{"type": "none", "mac": "52:54:00:00:00:01"}]}, "instance.networks.0"),
        ({"networks": [{"type": "bridge", "source": "../br0"}]}, "instance.networks.0.source"),
        ({"networks": [{"type": "user", "mac": "01:00:00:00:00:01"}]}, "instance.networks.0.mac"),
        ({"networks": [{"type": "user"}] * 9}, "instance.networks"),
        ({"user_data": "not base64!"}, "instance.user_data"),
        ({"user_data": "a" * (MAX_USER_DATA + 1)}, "instance.user_data"),
        ({"metadata": {f"key{n}": "" for n in range(129)}}, "instance.metadata"),
        ({"metadata": {"a": "b" * 4097}}, "instance.metadata.a"),
        ({"project_id": None}, "instance.project_id"),
        ({"colour": "red"}, "instance.colour"),
    ],
)
def test_bad_request(changes: dict[str, Any], field: str) -> None:
    """Each fault is refused with the path of the field at fault, and what to do about it."""
    error = refusal(**changes)

    assert error.field == field
    assert error.remedy
    assert field.rpartition(".")[2] in str(error)


@pytest.mark.parametrize("character", ["\x00", "\x07", "\x1b", "\ufffe", "\uffff", "\ud800"])
@pytest.mark.parametrize(
    "path", ["project_id", "user_id", "flavor.name", "flavor.extra_specs.key", "public_keys.key", "metadata.key"]
)
def test_text_that_xml_cannot_hold(path: str, character: str) -> None:
    """A character that no XML document can hold is refused in every free text, with its path."""
    text = f"a{character}b"
    value = {"key": text} if path.endswith("key") else text

    error = refusal(**{path.removesuffix(".key").replace(".", "__"): value})

    assert error.field == f"instance.{path}"
    assert character == "\ud800" or f"U+{ord(character):04X}" in str(error)


@pytest.mark.parametrize("character", ["\n", "\r", "\t", "\x7f", "\x9b", "\u2028"])
def test_text_of_one_line(character: str) -> None:
    """Identifiers, names and keys are of one line, and hold nothing that steers a terminal."""
    for path in ("project_id", "user_id", "flavor__name"):
        assert f"U+{ord(character):04X}" in str(refusal(**{path: f"a{character}b"}))
    assert f"U+{ord(character):04X}" in str(refusal(metadata={f"a{character}b": ""}))


def test_missing_field() -> None:
    """A missing field is named, and what to add."""
    asked = requested()
    del asked["flavor"]["vcpus"]

    with pytest.raises(InvalidRequest, match=r"add 'instance\.flavor\.vcpus'") as caught:
        parse(BuildArguments, {"instance": asked})
    assert caught.value.field == "instance.flavor.vcpus"


def test_unknown_field() -> None:
    """A field that this version does not know is to be removed."""
    assert "remove 'instance.colour'" in str(refusal(colour="red"))


def test_several_faults() -> None:
    """All faults are in one text, the first one as the field."""
    error = refusal(name="", flavor__vcpus=0, flavor__memory_mb=1)

    assert error.field == "instance.name"
    assert "instance.flavor.vcpus" in str(error)
    assert "instance.flavor.memory_mb" in str(error)


def test_endless_name_of_a_field() -> None:
    """The name of an unknown field does not fill the log."""
    error = refusal(**{"x" * 100_000: 1})

    assert len(str(error)) < 1000


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Web Server_1", "web-server-1"),
        ("a..", "a"),
        ("web.example.org", "web.example.org"),
        ("7", "7"),
        ("a.-.b", "a.b"),
        ("a" * 80, "a" * 63),
        ("a" * 62 + ".b", "a" * 62),
    ],
)
def test_host_name(name: str, expected: str) -> None:
    """Without a host name the guest gets one made from its name."""
    assert instance(name=name).host_name == expected
    assert instance(name=name, hostname="given").host_name == "given"


@given(st.from_regex(r"[A-Za-z0-9](?:[A-Za-z0-9 ._:@+-]{0,80}[A-Za-z0-9._:@+-])?", fullmatch=True))
def test_any_name_makes_a_host_name(name: str) -> None:
    """Whatever a guest is called, the host name that is made of it is one that could be asked for."""
    made = instance(name=name).host_name

    assert instance(name=name, hostname=made).host_name == made
    assert len(made) <= 63


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)


def _refusal(model: type[Any], arguments: Any) -> InvalidRequest | None:
    try:
        parse(model, arguments)
    except InvalidRequest as error:
        return error
    return None


@given(st.sampled_from(MODELS), _json)
def test_any_json(model: type[Any], arguments: Any) -> None:
    """Whatever arrives is parsed, or refused with a field, a remedy and nothing else."""
    error = _refusal(model, arguments)

    assert error is None or (error.field and error.remedy)


@given(st.sampled_from(sorted(requested() | {"networks": [], "user_data": "", "metadata": {}, "hostname": "a"})), _json)
def test_any_json_in_a_field(field: str, value: Any) -> None:
    """Whatever stands in one field is taken as it is, or refused by that field's name."""
    arguments = {"instance": requested(**{field: value})}

    error = _refusal(BuildArguments, arguments)

    if error is None:
        parsed = parse(BuildArguments, arguments).instance
        assert Instance.model_validate_json(parsed.model_dump_json(exclude_defaults=True)) == parsed
    else:
        assert str(error.field).startswith(f"instance.{field}")


def test_scheduling() -> None:
    """What a scheduler and a host tell each other comes through as it was sent, and may be left out."""
    scheduling = {"forced_host": "node-2.example", "tried": [ATTEMPT]}
    build = parse(BuildArguments, {"instance": requested(), "scheduling": scheduling})
    again = {"instance": requested(), "host": "node2", "generation": "amd-sev-es", "tried": [ATTEMPT]}
    rescheduled = parse(RescheduleArguments, again)

    assert build.scheduling is not None
    assert json.loads(build.scheduling.model_dump_json()) == scheduling
    assert (rescheduled.host, rescheduled.generation) == ("node2", Generation.SEV_ES)
    assert json.loads(rescheduled.tried[0].model_dump_json()) == ATTEMPT
    assert parse(BuildArguments, {"instance": requested()}).scheduling is None
    assert parse(ScheduleArguments, {"instance": requested()}).host is None


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"host": "node 1"}, "host"),
        ({"host": ""}, "host"),
        ({"generation": "sgx"}, "generation"),
        ({"tried": []}, "tried"),
        ({"tried": [ATTEMPT] * 17}, "tried"),
        ({"tried": [ATTEMPT | {"host": "a/b"}]}, "tried.0.host"),
        ({"tried": [ATTEMPT | {"message": "x" * 4097}]}, "tried.0.message"),
    ],
)
def test_bad_scheduling(changes: dict[str, Any], field: str) -> None:
    """What cannot be a host, a generation or a list of failed hosts is refused by its path."""
    asked = {"instance": requested(), "tried": [ATTEMPT]} | changes
    with pytest.raises(InvalidRequest) as caught:
        parse(RescheduleArguments, asked)
    assert caught.value.field == field
