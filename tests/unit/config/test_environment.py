"""Environment variables win over the file."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sev_agent.config import ConfigurationError, load, variables
from tests.unit.config.shipped import REFERENCE, sections


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
        expected = {(name, key) for name, section in sections().items() for key in section.model_fields}
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
