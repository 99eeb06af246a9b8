"""A server's metadata, tags and name."""

from tests.integration.api.conftest import Api


async def test_metadata(api: Api) -> None:
    """Set, replaced, read and removed, all and one by one."""
    server = await api.create(metadata={"a": "1"})
    path = f"/servers/{server}/metadata"
    assert await api.ask("GET", path) == (200, {"metadata": {"a": "1"}})
    assert await api.ask("POST", path, json={"metadata": {"b": "2"}}) == (200, {"metadata": {"a": "1", "b": "2"}})
    assert await api.ask("PUT", f"{path}/b", json={"meta": {"b": "3"}}) == (200, {"meta": {"b": "3"}})
    assert (await api.ask("PUT", f"{path}/b", json={"meta": {"c": "3"}}))[0] == 400
    assert await api.ask("GET", f"{path}/b") == (200, {"meta": {"b": "3"}})
    assert await api.ask("DELETE", f"{path}/b") == (204, None)
    for method in ("GET", "DELETE"):
        assert (await api.ask(method, f"{path}/b"))[0] == 404
    assert await api.ask("PUT", path, json={"metadata": {"z": "9"}}) == (200, {"metadata": {"z": "9"}})
    many = {f"k{number}": "" for number in range(128)}
    assert (await api.ask("POST", path, json={"metadata": many}))[0] == 403
    assert await api.ask("GET", path) == (200, {"metadata": {"z": "9"}})


async def test_tags(api: Api) -> None:
    """Since 2.26, also at the creation since 2.52; each once, in order."""
    server = await api.create(tags=["web", "eu", "web"])
    path = f"/servers/{server}/tags"
    assert await api.ask("GET", path) == (200, {"tags": ["eu", "web"]})
    assert (await api.ask("GET", path, version="2.25"))[0] == 404
    assert (await api.ask("PUT", f"{path}/new"))[0] == 201
    assert (await api.ask("PUT", f"{path}/new"))[0] == 204
    assert (await api.ask("PUT", f"{path}/a,b"))[0] == 400
    assert (await api.ask("GET", f"{path}/new"))[0] == 204
    assert (await api.ask("DELETE", f"{path}/new"))[0] == 204
    for method in ("GET", "DELETE"):
        assert (await api.ask(method, f"{path}/new"))[0] == 404
    assert (await api.show(server))["tags"] == ["eu", "web"]
    assert await api.ask("PUT", path, json={"tags": ["x"]}) == (200, {"tags": ["x"]})
    assert await api.ask("DELETE", path) == (204, None)
    assert await api.ask("GET", path) == (200, {"tags": []})
    assert "tags" not in (await api.ask("GET", f"/servers/{server}", version="2.25"))[1]["server"]


async def test_a_new_name(api: Api) -> None:
    """Renamed and described; what is no name is refused, and the old one stands."""
    server = await api.create()
    path = f"/servers/{server}"
    status, body = await api.ask("PUT", path, json={"server": {"name": " new ", "description": "d"}})
    assert (status, body["server"]["name"], body["server"]["description"]) == (200, "new", "d")
    for wrong in ({"name": ""}, {"name": "x" * 256}, {"name": 1}, {"flavorRef": "1"}):
        assert (await api.ask("PUT", path, json={"server": wrong}))[0] == 400
    assert (await api.ask("PUT", path, json={"server": {"description": "x"}}, version="2.18"))[0] == 400
    assert (await api.show(server))["name"] == "new"


async def test_limits_and_quotas(api: Api) -> None:
    """What is used follows what is there."""
    before = (await api.ask("GET", "/limits", user="bob"))[1]["limits"]["absolute"]["totalInstancesUsed"]
    await api.create(user="bob")
    after = (await api.ask("GET", "/limits", user="bob"))[1]["limits"]["absolute"]
    assert (after["totalInstancesUsed"], after["maxTotalInstances"]) == (before + 1, -1)
    project = api.tenants.projects["blue"]
    quota = (await api.ask("GET", f"/os-quota-sets/{project}/detail", user="bob"))[1]["quota_set"]
    assert quota["instances"] == {"limit": -1, "in_use": before + 1, "reserved": 0}
    assert (await api.ask("GET", f"/os-quota-sets/{project}"))[0] == 403
    assert (await api.ask("GET", f"/os-quota-sets/{project}", user="admin"))[0] == 200
