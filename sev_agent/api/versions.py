"""Version discovery: what this service speaks, in the form that keystoneauth and its kin read."""

from typing import Any

from sev_agent.api.microversion import MAXIMUM, MINIMUM


def every(base: str) -> dict[str, Any]:
    """The document at ``/``."""
    return {"versions": [_version(base)]}


def one(base: str) -> dict[str, Any]:
    """The document at ``/v2.1/``."""
    media = {"base": "application/json", "type": "application/vnd.openstack.compute+json;version=2.1"}
    return {"version": {**_version(base), "media-types": [media]}}


def _version(base: str) -> dict[str, Any]:
    return {
        "id": "v2.1",
        "status": "CURRENT",
        "version": str(MAXIMUM),
        "min_version": str(MINIMUM),
        "updated": "2013-07-23T11:33:21Z",
        "links": [{"rel": "self", "href": f"{base}/v2.1/"}],
    }
