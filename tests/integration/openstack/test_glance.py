"""The adapters against a real Keystone and a real Glance."""

import hashlib
import os
from pathlib import Path
from uuid import uuid4

import aiohttp
import pytest
from pydantic import SecretStr

from sev_agent.config import ServiceSection
from sev_agent.lab.accounts import service_user
from sev_agent.lab.openstack import OpenStack
from sev_agent.openstack.glance import CHUNK, Glance, ImageAmbiguous, ImageNotFound, ImageWithoutData
from sev_agent.openstack.identity import AuthenticationFailed, EndpointMissing, KeystoneIdentity


@pytest.fixture
def identity(session: aiohttp.ClientSession, cloud: OpenStack) -> KeystoneIdentity:
    return KeystoneIdentity(session, service_user(cloud))


@pytest.fixture
def glance(session: aiohttp.ClientSession, identity: KeystoneIdentity) -> Glance:
    return Glance(session, identity, ServiceSection())


async def test_catalog(identity: KeystoneIdentity, cloud: OpenStack) -> None:
    """The catalog that comes with the token knows the services that were registered, and no other."""
    assert await identity.endpoint("image") == cloud.glance_url
    with pytest.raises(EndpointMissing, match="compute"):
        await identity.endpoint("compute")


async def test_wrong_password(session: aiohttp.ClientSession, cloud: OpenStack) -> None:
    """Keystone's refusal names the user's setting."""
    auth = service_user(cloud).model_copy(update={"password": SecretStr("wrong")})
    with pytest.raises(AuthenticationFailed, match=r"auth\.username"):
        await KeystoneIdentity(session, auth).token()


async def test_round_trip(glance: Glance, tmp_path: Path) -> None:
    """What was uploaded is downloaded in full pieces, and has the digest that Glance says."""
    path = tmp_path / "image"
    path.write_bytes(os.urandom(3 * CHUNK + 12345))
    created = await glance.create_image("disk", disk_format="raw", min_disk=1, properties={"hw_machine_type": "q35"})
    assert (created.status, created.size) == ("queued", None)
    await glance.upload(created.id, path, total_timeout=30)

    image = await glance.get_image(created.id)
    assert (image.status, image.size, image.min_disk) == ("active", 3 * CHUNK + 12345, 1)
    assert image.properties == {"hw_machine_type": "q35"}
    assert image.os_hash_algo is not None
    digest = hashlib.new(image.os_hash_algo)
    sizes = []
    async with glance.download(image, total_timeout=30, idle_timeout=5) as chunks:
        async for chunk in chunks:
            sizes.append(len(chunk))
            digest.update(chunk)
    assert digest.hexdigest() == image.os_hash_value
    assert sizes == [CHUNK, CHUNK, CHUNK, 12345]
    await glance.delete_image(image.id)
    with pytest.raises(ImageNotFound):
        await glance.get_image(image.id)


async def test_revoked_token_is_renewed(
    session: aiohttp.ClientSession, glance: Glance, identity: KeystoneIdentity, cloud: OpenStack
) -> None:
    """A token that Keystone revoked costs one renewal and no error."""
    token = await identity.token()
    url = f"{cloud.keystone_url}/v3/auth/tokens"
    async with session.delete(url, headers={"X-Auth-Token": token, "X-Subject-Token": token}) as answer:
        assert answer.status == 204
    created = await glance.create_image("after", disk_format="raw")
    assert await identity.token() != token
    await glance.delete_image(created.id)


async def test_upload_with_a_revoked_token(
    session: aiohttp.ClientSession, glance: Glance, identity: KeystoneIdentity, cloud: OpenStack, tmp_path: Path
) -> None:
    """Also an upload is sent again from its beginning."""
    path = tmp_path / "image"
    path.write_bytes(b"x" * (2 * CHUNK + 1))
    created = await glance.create_image("disk", disk_format="raw")
    token = await identity.token()
    url = f"{cloud.keystone_url}/v3/auth/tokens"
    async with session.delete(url, headers={"X-Auth-Token": token, "X-Subject-Token": token}) as answer:
        assert answer.status == 204
    await glance.upload(created.id, path, total_timeout=30)
    assert (await glance.get_image(created.id)).size == 2 * CHUNK + 1
    await glance.delete_image(created.id)


async def test_image_without_data(glance: Glance) -> None:
    """Downloading what was never uploaded is an error of its own."""
    created = await glance.create_image("empty", disk_format="qcow2")
    with pytest.raises(ImageWithoutData):
        async with glance.download(created, total_timeout=5, idle_timeout=5):
            pass
    await glance.delete_image(created.id)


async def test_set_properties(glance: Glance) -> None:
    """New properties are added, existing ones replaced, the others left."""
    created = await glance.create_image("tagged", disk_format="qcow2", properties={"a": "1", "b": "2"})
    tagged = await glance.set_properties(created.id, {"b": "3", "hw_mem_encryption": "True"})
    assert tagged.properties == {"a": "1", "b": "3", "hw_mem_encryption": "True"}
    assert (await glance.get_image(created.id)).properties == tagged.properties
    await glance.delete_image(created.id)


async def test_remove_a_property(glance: Glance) -> None:
    """A property can be removed in the same change that sets another."""
    created = await glance.create_image("tagged", disk_format="qcow2", properties={"a": "1", "b": "2"})
    assert (await glance.set_properties(created.id, {"a": None, "b": "3"})).properties == {"b": "3"}
    await glance.delete_image(created.id)


@pytest.mark.parametrize("name", ["find me", "a,b", "in:a,b", 'the "best" \\ image', "größer", "x=1&y=2"])
async def test_find_by_name(glance: Glance, name: str) -> None:
    """An image is found by its identifier and by its name, whatever is in it; others of like names are not meant."""
    others = [await glance.create_image(other, disk_format="qcow2") for other in (f"{name}2", "a", "b")]
    created = await glance.create_image(name, disk_format="qcow2")
    assert (await glance.find_image(name)).id == created.id
    assert (await glance.find_image(str(created.id))).name == name
    for image in (created, *others):
        await glance.delete_image(image.id)


async def test_find_needs_one(glance: Glance) -> None:
    """A name that nobody or several have is an error; the latter names them."""
    with pytest.raises(ImageNotFound, match="no such image"):
        await glance.find_image("no such image")
    with pytest.raises(ImageNotFound):
        await glance.find_image(str(uuid4()))
    both = [await glance.create_image("twice", disk_format="qcow2") for _ in range(2)]
    with pytest.raises(ImageAmbiguous) as caught:
        await glance.find_image("twice")
    assert all(str(image.id) in caught.value.message for image in both)
    for image in both:
        await glance.delete_image(image.id)


async def test_missing(glance: Glance) -> None:
    """An image that is not there is named."""
    image_id = uuid4()
    with pytest.raises(ImageNotFound, match=str(image_id)):
        await glance.get_image(image_id)
    with pytest.raises(ImageNotFound):
        await glance.upload(image_id, Path(__file__), total_timeout=5)
