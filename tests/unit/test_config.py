import re
import socket
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from sev_agent.config import (
    AddressPool,
    AgentConfig,
    ApiConfig,
    ConfigurationError,
    DaemonConfig,
    LogFormat,
    SchedulerConfig,
    Section,
    load,
    load_as,
    variables,
)

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "conf" / "sev-agent.toml"
PASSWORD = "s3cret-of-keystone"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "sev-agent.toml"
    path.write_text('[auth]\nauth_url = "http://keystone.example:5000/v3"\n')
    return path


@dataclass(frozen=True)
class Shipped:
    """A daemon's configuration: its model, its shipped file, and what is in force there."""

    model: type[DaemonConfig]
    in_force: dict[str, set[str]]

    @property
    def text(self) -> str:
        return (ROOT / self.model.reference).read_text()

    @property
    def uncommented(self) -> str:
        """The reference file with every setting that it names, the commented ones too."""
        return re.sub(r"(?m)^#(?=[a-z_]+ = )", "", self.text)


SHIPPED = [
    Shipped(AgentConfig, {"auth": {"auth_url", "username"}}),
    Shipped(ApiConfig, {"auth": {"auth_url", "username"}}),
    Shipped(SchedulerConfig, {"auth": {"auth_url", "username"}}),
]


@pytest.fixture(params=SHIPPED, ids=lambda shipped: shipped.model.__name__)
def shipped(request: pytest.FixtureRequest) -> Shipped:
    shipped: Shipped = request.param
    return shipped


def _sections(model: type[DaemonConfig] = AgentConfig) -> dict[str, type[BaseModel]]:
    return {
        name: field.annotation
        for name, field in model.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
    }


def _plain(value: Any) -> Any:
    """A value as TOML would write it."""
    if hasattr(value, "get_secret_value"):
        return value.get_secret_value()
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


class TestReference:
    def test_loads_as_shipped(self, shipped: Shipped) -> None:
        """The file as it is shipped can be started with."""
        assert load_as(shipped.model, ROOT / shipped.model.reference, {})

    def test_loads_with_every_line_in_force(self, path: Path, shipped: Shipped) -> None:
        """No default that it shows, and no example, is refused."""
        path.write_text(shipped.uncommented)
        load_as(shipped.model, path, {})

    def test_names_every_setting_and_no_other(self, shipped: Shipped) -> None:
        """Its sections and keys are those of the model, one for one."""
        expected = {name: set(section.model_fields) for name, section in _sections(shipped.model).items()}
        assert {name: set(keys) for name, keys in tomllib.loads(shipped.uncommented).items()} == expected
        assert set(expected) == set(shipped.model.model_fields)

    def test_names_a_setting_once(self, shipped: Shipped) -> None:
        """No key stands twice in a section, neither commented nor in force."""
        section, seen = "", []
        for line in shipped.text.splitlines():
            if heading := re.fullmatch(r"\[(\w+)\]", line):
                section = heading[1]
            elif setting := re.match(r"#?([a-z_]+) = ", line):
                seen.append(f"{section}.{setting[1]}")
        assert len(seen) == len(set(seen))

    def test_shows_the_defaults(self, shipped: Shipped) -> None:
        """The value of each line is the default; where there is none, the line is an example."""
        shown = tomllib.loads(shipped.uncommented)
        for name, section in _sections(shipped.model).items():
            for key, field in section.model_fields.items():
                if field.default is PydanticUndefined or field.default in {None, ()}:
                    continue
                if (name, key) == ("auth", "username"):
                    continue
                assert shown[name][key] == _plain(field.default), f"{name}.{key}"

    def test_sets_only_what_has_no_usable_default(self, shipped: Shipped) -> None:
        """What is in force in the shipped file is what a site must set, and nothing else."""
        live = tomllib.loads(shipped.text)
        assert {name: set(keys) for name, keys in live.items() if keys} == shipped.in_force

    def test_explains_every_setting(self, shipped: Shipped) -> None:
        """Each group of settings follows a comment of prose."""
        blocks = [block for block in shipped.text.split("\n\n") if re.search(r"(?m)^#?[a-z_]+ = ", block)]
        for block in blocks:
            first = re.sub(r"^\[\w+\]\n", "", block)
            assert first.startswith("# "), block


class TestFile:
    def test_empty_but_for_keystone(self, path: Path) -> None:
        """All but Keystone's address has a default that works."""
        config = load(path, {})
        assert config.host.name == socket.gethostname()
        assert config.http.host == "127.0.0.1"
        assert config.log.format is LogFormat.AUTO

    def test_values_are_taken(self, path: Path) -> None:
        """Settings of the file replace the defaults, converted to their types."""
        path.write_text(
            '[host]\nname = "h1"\nstate_dir = "/srv/x"\n[auth]\ntype = "none"\n[hypervisor]\nfirmware_dirs = ["/a"]\n'
        )
        config = load(path, {})
        assert (config.host.name, config.host.state_dir) == ("h1", Path("/srv/x"))
        assert config.hypervisor.firmware_dirs == (Path("/a"),)

    @pytest.mark.parametrize(
        "name", ["host.state_dir", "hypervisor.emulator", "hypervisor.firmware_dirs.0", "encryption.platform_root"]
    )
    def test_relative_path(self, path: Path, name: str) -> None:
        """A path that libvirt or QEMU would look for elsewhere is refused."""
        section, key, *in_list = name.split(".")
        value = '["here"]' if in_list else '"here"'
        path.write_text(f'[auth]\ntype = "none"\n[{section}]\n{key} = {value}\n')
        with pytest.raises(ConfigurationError, match=rf"\n  {name}: .*must be an absolute path"):
            load(path, {})

    def test_host_name_of_the_machine(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The machine's own name is checked as one in the file is: it becomes the name of queues."""
        monkeypatch.setattr(socket, "gethostname", lambda: "bad name")
        with pytest.raises(ConfigurationError, match=r"\n  host\.name: "):
            load(path, {})

    def test_every_fault_at_once(self, path: Path) -> None:
        """All that is wrong is told in one go, each with its path."""
        path.write_text(
            "unknown = 1\n"
            '[host]\nname = "no spaces please"\ncolour = "red"\n'
            "[http]\nport = 70000\n"
            '[images]\ncache_max_gb = "much"\n'
            '[auth]\nauth_url = "ftp://x"\n'
            "[nonsense]\na = 1\n"
        )
        with pytest.raises(ConfigurationError) as caught:
            load(path, {"SEV_AGENT_HTTP__PROT": "1"})
        text = str(caught.value)
        for fault in (
            "unknown: no such setting",
            "host.name: must be 1 to 200 letters",
            "host.colour: no such setting",
            "http.port: ",
            "images.cache_max_gb: ",
            "auth.auth_url: must be an address",
            "nonsense: no such setting",
            "SEV_AGENT_HTTP__PROT: no such setting",
        ):
            assert f"\n  {fault}" in text
        assert str(path) in text
        assert "conf/sev-agent.toml" in text

    @pytest.mark.parametrize(
        ("text", "fault"),
        [
            ("host = 1", "host: "),
            ("[hypervisor]\ncall_timeout = 0", "hypervisor.call_timeout: "),
            ("[hypervisor]\ncall_timeout = inf", "hypervisor.call_timeout: "),
            ("[hypervisor]\ncall_timeout = nan", "hypervisor.call_timeout: "),
            ("[encryption]\nlimit = 0", "encryption.limit: "),
            ('[encryption]\npolicy_required = ["debug"]', "encryption.policy_required: "),
            ('[placement]\nstopped_guests = "keep"', "placement.stopped_guests: "),
            ("[placement]\nreserved_host_memory_mb = -1", "placement.reserved_host_memory_mb: "),
            ('[log]\nformat = "xml"', "log.format: "),
            ("[builds]\nmax_concurrent = 1.5", "builds.max_concurrent: "),
        ],
    )
    def test_bad_value_is_refused(self, path: Path, text: str, fault: str) -> None:
        """A value of the wrong type or out of its bounds is refused by its path."""
        path.write_text(text)
        with pytest.raises(ConfigurationError, match=f"\n  {re.escape(fault)}"):
            load(path, {})

    def test_keystone_is_needed_with_a_password(self, path: Path) -> None:
        """Without Keystone's address a daemon that authenticates cannot start, and is told so here."""
        path.write_text("")
        with pytest.raises(ConfigurationError, match=r"auth\.auth_url: needed"):
            load(path, {})
        assert load(path, {"SEV_AGENT_AUTH__TYPE": "none"}).auth.auth_url is None

    def test_missing_file_is_refused(self, tmp_path: Path) -> None:
        """A file that is not there is never taken for one without settings."""
        with pytest.raises(ConfigurationError, match="cannot be read: No such file") as caught:
            load(tmp_path / "absent.toml", {})
        assert caught.value.remedy

    def test_directory_is_refused(self, tmp_path: Path) -> None:
        """A directory in the file's place is refused in the same way."""
        with pytest.raises(ConfigurationError, match="cannot be read: Is a directory"):
            load(tmp_path, {})

    @pytest.mark.parametrize("content", [b"[host", b'[host]\nname = "\xff"', b"a = 1\na = 2"])
    def test_what_is_not_toml_is_refused(self, path: Path, content: bytes) -> None:
        """Broken syntax, a broken encoding and a doubled key are told as such."""
        path.write_bytes(content)
        with pytest.raises(ConfigurationError, match="is not TOML"):
            load(path, {})

    def test_config_cannot_be_changed(self, path: Path) -> None:
        """What was read stays as it was read."""
        config = load(path, {})
        with pytest.raises(ValueError, match="frozen"):
            config.http.port = 1  # type: ignore[misc]


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


class TestEnvironment:
    def test_wins_over_the_file(self, path: Path) -> None:
        """A variable replaces what the file says, and only that."""
        path.write_text('[auth]\nauth_url = "http://keystone:5000"\n[http]\nhost = "::1"\nport = 1\n')
        config = load(path, {"SEV_AGENT_HTTP__PORT": "9300"})
        assert (config.http.host, config.http.port) == ("::1", 9300)

    def test_sets_what_the_file_lacks(self, path: Path) -> None:
        """A variable may set a key of a section that the file does not have."""
        assert load(path, {"SEV_AGENT_ENCRYPTION__LIMIT": "15"}).encryption.limit == 15

    def test_list_is_written_as_in_toml(self, path: Path) -> None:
        """A setting that is a list is given as one."""
        config = load(path, {"SEV_AGENT_HYPERVISOR__FIRMWARE_DIRS": '["/a", "/b c"]'})
        assert config.hypervisor.firmware_dirs == (Path("/a"), Path("/b c"))

    def test_broken_list_is_refused(self, path: Path) -> None:
        """A list that is none is a fault of its setting."""
        with pytest.raises(ConfigurationError, match=r"hypervisor\.firmware_dirs: "):
            load(path, {"SEV_AGENT_HYPERVISOR__FIRMWARE_DIRS": "[/a"})

    def test_bad_value_is_refused(self, path: Path) -> None:
        """A variable's value is held to the same rules as the file's."""
        with pytest.raises(ConfigurationError, match=r"http\.port: "):
            load(path, {"SEV_AGENT_HTTP__PORT": "http"})

    @pytest.mark.parametrize("name", ["SEV_AGENT_HTTP__PROT", "SEV_AGENT_HTTP_PORT", "SEV_AGENT_", "SEV_AGENT_X__Y"])
    def test_mistyped_variable_is_refused(self, path: Path, name: str) -> None:
        """A variable with the prefix that is no setting is an error: ignored, it would silently do nothing."""
        with pytest.raises(ConfigurationError, match=f"{name}: no such setting"):
            load(path, {name: "1"})

    def test_foreign_variables_are_left_alone(self, path: Path) -> None:
        """Other programs' variables, and those of the commands, are no fault."""
        load(path, {"PATH": "/bin", "SEV_AGENTS": "x", "SEV_AGENT_CONFIG": "/x", "SEV_AGENT_LAB_DIR": "/y"})

    def test_process_environment_is_the_default(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without another one given, the environment is that of the process."""
        monkeypatch.setenv("SEV_AGENT_LOG__LEVEL", "debug")
        assert load(path).log.level == "debug"

    def test_every_setting_has_its_variable(self) -> None:
        """Each key of each section can be set by a variable of its name."""
        expected = {(name, key) for name, section in _sections().items() for key in section.model_fields}
        assert set(variables().values()) == expected
        assert variables()["SEV_AGENT_PLACEMENT__STOPPED_GUESTS"] == ("placement", "stopped_guests")

    @given(text=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40))
    def test_any_text_is_taken_or_refused(self, text: str) -> None:
        """Whatever stands in a variable, the answer is a configuration or a ``ConfigurationError``."""
        for name in ("SEV_AGENT_HTTP__PORT", "SEV_AGENT_HYPERVISOR__FIRMWARE_DIRS", "SEV_AGENT_GLANCE__ENDPOINT"):
            try:
                load(REFERENCE, {name: text})
            except ConfigurationError as error:
                assert "\n  " in str(error)  # noqa: PT017 - either outcome is right

    @pytest.mark.parametrize(
        "url", ["", "broker", "rabbit://broker/", "http://broker/", "amqp://", "amqp://broker:port/", "amqp://b:99999/"]
    )
    def test_what_is_no_broker(self, path: Path, url: str) -> None:
        """An address that RabbitMQ cannot have is refused before the daemon starts, and told how one looks."""
        with pytest.raises(ConfigurationError, match=r"messaging\.url: must be amqp://USER:PASSWORD@HOST:PORT/VHOST"):
            load(path, {"SEV_AGENT_MESSAGING__URL": url})


class TestSecrets:
    def _config(self, path: Path) -> AgentConfig:
        return load(
            path,
            {"SEV_AGENT_AUTH__PASSWORD": PASSWORD, "SEV_AGENT_MESSAGING__URL": f"amqp://agent:{PASSWORD}@broker/"},
        )

    def test_can_be_had(self, path: Path) -> None:
        """The one who needs a secret gets it by asking for it by name."""
        config = self._config(path)
        assert config.auth.password.get_secret_value() == PASSWORD
        assert PASSWORD in config.messaging.url.get_secret_value()

    @pytest.mark.parametrize("show", [repr, str, lambda config: config.model_dump_json()])
    def test_are_never_shown(self, path: Path, show: Any) -> None:
        """No form in which a configuration may reach a log holds a secret."""
        assert PASSWORD not in show(self._config(path))

    def test_are_not_in_errors(self, path: Path) -> None:
        """What is refused is named by its path, and its value is not repeated."""
        path.write_text(
            f'[auth]\npassword = ["{PASSWORD}"]\nauth_url = "{PASSWORD}"\n[messaging]\nurl = "rabbit://a:{PASSWORD}@b/"\n'
        )
        with pytest.raises(ConfigurationError) as caught:
            load(path, {"SEV_AGENT_AUTH__PASWORD": PASSWORD})  # mistyped: its value is not repeated either
        assert "auth.password: " in str(caught.value)
        assert PASSWORD not in str(caught.value)
        assert caught.value.__cause__ is None
