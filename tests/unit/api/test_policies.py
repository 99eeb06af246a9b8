"""The operator's bounds on guest policies: a flavor outside of them is refused before any host hears of it."""

from pathlib import Path

import pytest

from sev_agent.config import PolicySection
from tests.compute_api import file_database, serving
from tests.unit.api.requests import make_flavor, make_image, message, nothing_is_there, server

BOUNDS = PolicySection(policy_required=("nosend", "single_socket"), policy_forbidden=("sev",))


@pytest.mark.parametrize(
    ("bounds", "model", "policy", "said"),
    [
        (None, "amd-sev-snp", "smt,migrate_ma", "this cloud does not allow migrate_ma in a policy"),
        (None, "amd-sev", "noks,debug", "'debug' would let the host read the guest's memory, which is never allowed"),
        (
            None,
            "amd-sev-snp",
            "smt,debug",
            "'debug' would let the host read the guest's memory, which is never allowed",
        ),
        (None, "amd-sev-es", "abi=1.55", "'abi=1.55' is not part of a policy of amd-sev-es"),
        (BOUNDS, "amd-sev", "noks", "this cloud demands nosend of every policy"),
        (BOUNDS, "amd-sev-es", "nosend,sev", "this cloud does not allow sev in a policy"),
        (BOUNDS, "amd-sev-snp", "smt", "this cloud demands single_socket of every policy"),
    ],
)
async def test_refused(bounds: PolicySection | None, model: str, policy: str, said: str, tmp_path: Path) -> None:
    """400, which names the property, its value and what to change; debugging is refused whatever the bounds are."""
    async with serving(await file_database(tmp_path), bounds) as api:
        specs = {"hw:mem_encryption": "true", "hw:mem_encryption_model": model, "hw:mem_encryption_policy": policy}
        await make_flavor(api, **specs)
        image = make_image(api, hw_firmware_stateless="true")

        status, body = await api.ask("POST", "/servers", json=server(image))

        assert status == 400
        text = message(status, body)
        assert f"flavor property 'hw:mem_encryption_policy' is {policy!r}" in text
        assert said in text
        assert await nothing_is_there(api)


async def test_within_the_bounds(tmp_path: Path) -> None:
    """A policy within the bounds is taken; where a flavor names none, the default policy must be within them too."""
    async with serving(await file_database(tmp_path), BOUNDS) as api:
        await make_flavor(api, hw__mem_encryption="true", hw__mem_encryption_policy="nosend,domain")
        await make_flavor(api, "default", hw__mem_encryption="true")
        image = make_image(api)

        assert (await api.ask("POST", "/servers", json=server(image)))[0] == 202
        status, body = await api.ask("POST", "/servers", json=server(image, "default"))
        assert status == 400
        assert "flavor property 'hw:mem_encryption_policy' is not set" in message(status, body)
