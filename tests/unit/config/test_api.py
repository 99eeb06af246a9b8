"""What the compute API alone is told."""

from pathlib import Path

import pytest

from sev_agent.config import AddressPool, ApiConfig, ConfigurationError, load_as


class TestApi:
    def test_without_keystone_on_loopback_only(self, path: Path) -> None:
        """Where everyone is an administrator, the network must not reach it."""
        path.write_text('[auth]\ntype = "none"\n[api]\nhost = "0.0.0.0"\n')
        with pytest.raises(ConfigurationError, match=r"\n  api\.host: without Keystone .* loopback"):
            load_as(ApiConfig, path, {})
        for host in ("127.0.0.1", "::1", "localhost"):
            assert load_as(ApiConfig, path, {"SEV_AGENT_API__HOST": host}).api.host == host

    @pytest.mark.parametrize("url", ["mysql://x", "sqlite://", "/var/lib/api", "postgresql+psycopg://x"])
    def test_a_database_that_is_not_supported(self, path: Path, url: str) -> None:
        """Only what is tested can be configured."""
        path.write_text(f'[auth]\ntype = "none"\n[database]\nurl = "{url}"\n')
        with pytest.raises(ConfigurationError, match=r"\n  database\.url: must begin with"):
            load_as(ApiConfig, path, {})

    def test_deletions_are_remembered_as_long_as_on_hosts(self, path: Path) -> None:
        """A day is the least."""
        path.write_text('[auth]\ntype = "none"\n[api]\ndeleted_retention = 86399\n')
        with pytest.raises(ConfigurationError, match=r"\n  api\.deleted_retention: "):
            load_as(ApiConfig, path, {})

    def test_nobody_reaches_the_hosts_loopback_by_default(self) -> None:
        """QEMU's own network, which leads there, is the operator's word."""
        assert ApiConfig().networks.auto == "none"

    @pytest.mark.parametrize("offered", ["x=bridge:y", "f0e1d2c3-0000-4000-8000-000000000001=user:x"])
    def test_a_network_that_means_nothing(self, path: Path, offered: str) -> None:
        """A network is a UUID and what it stands for on the host."""
        path.write_text(f'[auth]\ntype = "none"\n[networks]\noffered = ["{offered}"]\n')
        with pytest.raises(ConfigurationError, match=r"\n  networks\.offered\.0: must be UUID="):
            load_as(ApiConfig, path, {})

    @pytest.mark.parametrize(
        "changes",
        [
            {"first": "192.0.2.0"},
            {"last": "192.0.2.255"},
            {"first": "192.0.2.21"},
            {"last": "198.51.100.1"},
            {"gateway": "198.51.100.1"},
            {"cidr": "192.0.2.1/24"},
            {"network": "f0e1d2c3-0000-4000-8000-000000000002"},
        ],
    )
    def test_addresses_that_cannot_be_given(self, path: Path, changes: dict[str, str]) -> None:
        """A pool is of an offered network, and its addresses are hosts' in one range of one CIDR."""
        network = "f0e1d2c3-0000-4000-8000-000000000001"
        pool = {"network": network, "cidr": "192.0.2.0/24", "first": "192.0.2.10", "last": "192.0.2.20", **changes}
        written = ", ".join(f'{name} = "{value}"' for name, value in pool.items())
        path.write_text(
            f'[auth]\ntype = "none"\n[networks]\noffered = ["{network}=bridge:x"]\npools = [{{ {written} }}]\n'
        )
        with pytest.raises(ConfigurationError, match=r"\n  networks"):
            load_as(ApiConfig, path, {})

    def test_the_gateway_is_nobodys(self) -> None:
        """Where the gateway lies in the range, no server gets it."""
        pool = AddressPool.model_validate(
            {
                "network": "f0e1d2c3-0000-4000-8000-000000000001",
                "cidr": "192.0.2.0/30",
                "first": "192.0.2.1",
                "last": "192.0.2.2",
                "gateway": "192.0.2.1",
            }
        )
        assert [str(address) for address in pool.addresses()] == ["192.0.2.2"]
