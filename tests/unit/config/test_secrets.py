"""Secrets are had by name, and never shown."""

from pathlib import Path
from typing import Any

import pytest

from sev_agent.config import AgentConfig, ConfigurationError, load

PASSWORD = "s3cret-of-keystone"


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
