"""What the adapter makes of answers that a real Placement gives rarely or never."""

import json
from contextlib import suppress
from typing import Any
from uuid import UUID, uuid4

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from sev_agent.config import ServiceSection
from sev_agent.openstack.exchange import BadAnswer, Response, ServiceUnavailable
from sev_agent.openstack.identity import NoIdentity
from sev_agent.openstack.placement import (
    Allocation,
    ConcurrentUpdate,
    Full,
    InventoryInUse,
    NameTaken,
    Placement,
    PlacementRefused,
    ProviderInUse,
    ProviderNotFound,
    RequestGroup,
    retry_conflicts,
)
from sev_agent.openstack.placement_wire import (
    AllocationDocument,
    CandidatesDocument,
    InventoriesDocument,
    ProviderAllocationsDocument,
    ProvidersDocument,
    candidates_query,
)
from tests.unit.openstack.conftest import Handler, Serve

ROOT = UUID("11111111-1111-4111-8111-111111111111")
CONSUMER = UUID("22222222-2222-4222-8222-222222222222")


def placement(session: aiohttp.ClientSession, address: str) -> Placement:
    return Placement(session, NoIdentity(), ServiceSection(endpoint=address, timeout=5))


def error(status: int, code: str, detail: str = "words") -> web.Response:
    return web.json_response({"errors": [{"status": status, "code": code, "detail": detail}]}, status=status)


def always(response: web.Response) -> Handler:
    async def handle(_: web.Request) -> web.Response:
        return web.Response(status=response.status, body=response.body, content_type=response.content_type)

    return handle


def claim(generation: int | None = None) -> Allocation:
    return Allocation(
        resources={ROOT: {"MEM_ENCRYPTION_CONTEXT": 1}},
        project_id="p",
        user_id="u",
        consumer_type="INSTANCE",
        consumer_generation=generation,
    )


@pytest.mark.parametrize(
    ("answer", "expected", "retryable"),
    [
        (error(404, "placement.undefined_code"), ProviderNotFound, False),
        (error(409, "placement.concurrent_update"), ConcurrentUpdate, True),
        (error(409, "placement.inventory.inuse"), InventoryInUse, False),
        (error(409, "placement.resource_provider.inuse"), ProviderInUse, False),
        (error(409, "placement.resource_provider.cannot_delete_parent"), ProviderInUse, False),
        (error(409, "placement.undefined_code", "Unable to allocate inventory: too much"), Full, True),
        (error(409, "placement.undefined_code", "something else"), PlacementRefused, False),
        (error(400, "placement.undefined_code"), PlacementRefused, False),
        (error(500, "placement.undefined_code"), ServiceUnavailable, True),
    ],
)
async def test_errors(
    session: aiohttp.ClientSession, serve: Serve, answer: web.Response, expected: type[Exception], *, retryable: bool
) -> None:
    """Placement's codes become errors of their own that repeat its words."""
    with pytest.raises(expected, match=r"words|too much|something else") as caught:
        await placement(session, await serve(always(answer))).put_allocation(CONSUMER, claim())
    assert type(caught.value) is expected
    assert getattr(caught.value, "retryable", None) is retryable


async def test_another_servers_404_is_not_placements(session: aiohttp.ClientSession, serve: Serve) -> None:
    """A wrong endpoint is not taken for a provider that is gone."""
    service = placement(session, await serve(always(web.Response(status=404, text="<html>no</html>"))))
    for operation in (service.delete_provider(ROOT), service.inventories(ROOT), service.tree(ROOT)):
        with pytest.raises(BadAnswer, match="404"):
            await operation


async def test_headers(session: aiohttp.ClientSession, serve: Serve) -> None:
    """Every request has the microversion, and without Keystone a stand-in for the token."""
    seen: list[web.Request] = []

    async def handle(request: web.Request) -> web.Response:
        seen.append(request)
        return web.json_response({"resource_providers": []})

    assert await placement(session, await serve(handle)).find_provider("x & y") is None
    assert seen[0].headers["OpenStack-API-Version"] == "placement 1.39"
    assert seen[0].headers["X-Auth-Token"] == "admin"
    assert seen[0].query == {"name": "x & y"}


async def test_name_that_can_neither_be_made_nor_found(session: aiohttp.ClientSession, serve: Serve) -> None:
    """A UUID that another provider has is an error that names both, and no endless attempt."""

    async def handle(request: web.Request) -> web.Response:
        if request.method == "POST":
            return error(409, "placement.duplicate_name", "Conflicting resource provider")
        return web.json_response({"resource_providers": []})

    with pytest.raises(NameTaken, match=f"'host'.*{ROOT}.*Conflicting"):
        await placement(session, await serve(handle)).create_provider("host", uuid=ROOT)


async def test_retry_is_bounded() -> None:
    """An operation that conflicts for ever is tried as often as asked, and its conflict raised."""
    tries = 0

    async def operation() -> None:
        nonlocal tries
        tries += 1
        raise ConcurrentUpdate("again")

    with pytest.raises(ConcurrentUpdate):
        await retry_conflicts(operation, attempts=4)
    assert tries == 4


async def test_only_conflicts_are_retried() -> None:
    """A full provider is not asked again."""
    tries = 0

    async def operation() -> None:
        nonlocal tries
        tries += 1
        raise Full("no")

    with pytest.raises(Full):
        await retry_conflicts(operation)
    assert tries == 1


async def test_retry_gives_the_result_of_the_attempt_that_works() -> None:
    """After conflicts the value of the first attempt without one is returned."""
    tries = 0

    async def operation() -> int:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise ConcurrentUpdate("again")
        return tries

    assert await retry_conflicts(operation) == 3


def test_query() -> None:
    """Groups become suffixed parameters; the policy is there only when there is more than one suffixed group."""
    tree = uuid4()
    plain = RequestGroup(resources={"VCPU": 2, "MEMORY_MB": 512}, required=frozenset({"B", "A"}))
    slot = RequestGroup(resources={"X": 1}, forbidden=frozenset({"C"}), in_tree=tree)
    query = {"limit": "5", "resources": "VCPU:2,MEMORY_MB:512", "required": "A,B"}
    suffixed = {"resources_1": "X:1", "required_1": "!C", "in_tree_1": str(tree)}
    assert candidates_query({"": plain, "_1": slot}, 5) == query | suffixed
    assert candidates_query({"_1": slot, "_2": RequestGroup()}, 5)["group_policy"] == "none"


CLAIM = {"allocations": {str(ROOT): {"resources": {"VCPU": 1}}}}
INVENTORY = {"total": 1, "reserved": 0, "min_unit": 1, "max_unit": 1, "step_size": 1, "allocation_ratio": 1.0}
PROVIDER = {"uuid": str(ROOT), "name": "n", "generation": 0, "root_provider_uuid": str(ROOT)}
SUMMARY = {"resources": {"VCPU": {"capacity": 4, "used": 0}}, "traits": ["A"], "root_provider_uuid": str(ROOT)}
DOCUMENTS: dict[type[BaseModel], dict[str, Any]] = {
    AllocationDocument: {**CLAIM, "project_id": "p", "user_id": "u", "consumer_type": "I", "consumer_generation": 1},
    CandidatesDocument: {
        "allocation_requests": [{**CLAIM, "mappings": {"": [str(ROOT)]}}],
        "provider_summaries": {str(ROOT): {**SUMMARY, "parent_provider_uuid": None}},
    },
    InventoriesDocument: {"resource_provider_generation": 1, "inventories": {"VCPU": INVENTORY}},
    ProviderAllocationsDocument: {"resource_provider_generation": 1, **CLAIM},
    ProvidersDocument: {"resource_providers": [{**PROVIDER, "parent_provider_uuid": None}]},
}
JUNK: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just([]), st.just({})
)


def spoiled(draw: st.DrawFn, document: Any) -> Any:
    """``document`` with junk in the place of one of its parts, at any depth, or without that part."""
    if not isinstance(document, dict | list) or not document or draw(st.integers(0, 3)) == 0:
        return draw(JUNK)
    key = draw(st.sampled_from(sorted(document) if isinstance(document, dict) else range(len(document))))
    copy = document.copy()
    if draw(st.booleans()):
        copy[key] = spoiled(draw, document[key])
    else:
        del copy[key]
    return copy


def parse(model: type[BaseModel], document: Any) -> Any:
    text = json.dumps(document).encode()
    response = Response(service="placement", url="http://x/", status=200, headers={}, body=text)
    parsed = response.parse(model)
    if isinstance(parsed, ProvidersDocument):
        return [document.value() for document in parsed.resource_providers]
    return parsed.value()  # type: ignore[attr-defined] # every other document stands for one value


@pytest.mark.parametrize("model", DOCUMENTS)
def test_documents_are_understood(model: type[BaseModel]) -> None:
    """The documents that the next test spoils are good ones."""
    assert parse(model, DOCUMENTS[model])


@given(data=st.data())
@pytest.mark.parametrize("model", DOCUMENTS)
def test_spoiled_documents_are_understood_or_a_bad_answer(model: type[BaseModel], data: st.DataObject) -> None:
    """A document with anything in the place of any part raises nothing but a bad answer."""
    document = data.draw(st.composite(spoiled)(DOCUMENTS[model]))
    with suppress(BadAnswer):
        parse(model, document)


FIELDS = {field for model in DOCUMENTS for field in model.model_fields} | PROVIDER.keys() | SUMMARY.keys()
FIELDS |= INVENTORY.keys() | {"resources", "mappings", "capacity"}


def swollen(document: Any) -> Any:
    """``document`` with a hundred wrong entries in each list and mapping of it that may have many."""
    match document:
        case dict():
            wrong = dict.fromkeys(map(str, range(100))) if not document.keys() & FIELDS else {}
            return {key: swollen(value) for key, value in document.items()} | wrong
        case list():
            return [swollen(each) for each in document] + [None] * 100
        case _:
            return document


@pytest.mark.parametrize("model", DOCUMENTS)
def test_long_nonsense_is_left_at_its_first_fault(model: type[BaseModel]) -> None:
    """An answer that is wrong in a million places is not gone through to its end: to note them all takes gigabytes."""
    with pytest.raises(ValidationError) as caught:
        model.model_validate_json(json.dumps(swollen(DOCUMENTS[model])))

    assert caught.value.error_count() < 10


async def test_long_words_are_cut(session: aiohttp.ClientSession, serve: Serve) -> None:
    """What Placement says against a request goes into records and notifications: a thousand characters of it."""
    answer = error(409, "placement.undefined_code", "Unable to allocate inventory: " + "x" * 100_000)
    with pytest.raises(Full) as caught:
        await placement(session, await serve(always(answer))).put_allocation(CONSUMER, claim())

    assert len(str(caught.value)) < 2000
