"""The document is what is served: every route is in it, and nothing else."""

import re
from typing import Any

import aiohttp

from sev_agent.api.answers import ANSWERS
from sev_agent.api.app import PREFIX
from tests.compute_api import InProcessApi

_PROJECT = re.compile(r"^/v2\.1/\{project_id")


async def described(api: InProcessApi) -> dict[str, Any]:
    """The document, fetched as anybody can."""
    async with aiohttp.ClientSession() as session, session.get(f"{api.url}/openapi.json") as answer:
        assert answer.status == 200
        assert answer.content_type == "application/json"
        document: dict[str, Any] = await answer.json()
        return document


async def test_every_route_is_described(api: InProcessApi) -> None:
    """What the server routes and what the document lists are the same, discovery and the document itself aside."""
    served = set()
    for route in api.api.app.router.routes():
        resource = route.resource
        assert resource is not None
        path = resource.canonical
        if path.startswith(f"{PREFIX}/") and path != f"{PREFIX}/" and not _PROJECT.match(path):
            served.add((route.method, path))
    document = await described(api)
    listed = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert listed == {(method, path) for method, path in served if method != "HEAD"}


async def test_operations_are_named_once(api: InProcessApi) -> None:
    """Every operation has a summary, and an identifier of its own."""
    document = await described(api)
    operations = [operation for methods in document["paths"].values() for operation in methods.values()]
    assert all(operation["summary"].endswith(".") for operation in operations)
    assert len({operation["operationId"] for operation in operations}) == len(operations)


async def test_references_lead_somewhere(api: InProcessApi) -> None:
    """Every reference in the document is to something in it."""
    document = await described(api)

    def check(value: Any) -> None:
        match value:
            case {"$ref": str(reference)}:
                found: Any = document
                for part in reference.removeprefix("#/").split("/"):
                    found = found[part]
            case dict():
                for each in value.values():
                    check(each)
            case list():
                for each in value:
                    check(each)

    check(document)


async def test_parameters_are_described(api: InProcessApi) -> None:
    """Path and query parameters, the body and the role stand in the operation."""
    document = await described(api)
    operation = document["paths"]["/v2.1/os-keypairs/{keypair_name}"]["delete"]
    named = {(each["in"], each["name"], each["required"]) for each in operation["parameters"] if "name" in each}
    assert named == {("path", "keypair_name", True), ("query", "user_id", False)}
    assert operation["x-openstack"]["role"] == "member"
    body = document["paths"]["/v2.1/os-keypairs"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/CreateKeypair"}
    assert document["components"]["schemas"]["CreateKeypair"]["required"] == ["keypair"]


async def test_bodies_are_described_truly(api: InProcessApi) -> None:
    """What is refused beyond a type stands in the document, too: keys of metadata, identifiers, the actions."""
    schemas = (await described(api))["components"]["schemas"]
    metadata = schemas["AllMetadata"]["properties"]["metadata"]
    assert list(metadata["patternProperties"]) == [r"^[a-zA-Z0-9\-_:. ]+$"]
    assert metadata["additionalProperties"] is False
    assert schemas["NewServer"]["properties"]["imageRef"]["format"] == "uuid"
    assert "public_key" in schemas["NewKeypair"]["required"]
    actions = [name for choice in schemas["ServerAction"]["oneOf"] for name in choice["required"]]
    assert actions == ["os-start", "os-stop", "reboot", "os-getConsoleOutput"]


async def test_answers_are_described(api: InProcessApi) -> None:
    """Each success tells its body, or that it has none; every answer in these tests is held against that."""
    document = await described(api)
    operations = [operation for methods in document["paths"].values() for operation in methods.values()]
    with_body = {
        operation["operationId"]
        for operation in operations
        if any("content" in said for status, said in operation["responses"].items() if status < "300")
    }
    assert with_body == set(ANSWERS)
    server = document["components"]["schemas"]["DetailedServer"]
    assert server["additionalProperties"] is False
    assert {"id", "OS-EXT-STS:vm_state", "hostId"} <= set(server["required"])
    assert not {"fault", "tags", "OS-EXT-SRV-ATTR:host"} & set(server["required"])


async def test_what_never_succeeds_is_described_so(api: InProcessApi) -> None:
    """Its answers are faults, and nothing else."""
    answers = (await described(api))["paths"]["/v2.1/os-floating-ip-pools"]["get"]["responses"]
    assert min(answers) == "400"
    assert {schema["content"]["application/json"]["schema"]["$ref"] for schema in answers.values()} == {
        "#/components/schemas/Fault"
    }
