import pytest

from sev_agent.cli.credentials import auth_from
from sev_agent.config import ConfigurationError

OPENRC = {
    "OS_AUTH_URL": "http://127.0.0.1:5000/v3",
    "OS_USERNAME": "alice",
    "OS_PASSWORD": "secret",
    "OS_PROJECT_NAME": "demo",
}


def test_openrc() -> None:
    """The variables of an openrc file are the credentials; the domains are by default the default one."""
    auth = auth_from(
        OPENRC
        | {
            "OS_REGION_NAME": "lab",
            "OS_USER_DOMAIN_NAME": "people",
            "OS_PROJECT_DOMAIN_ID": "default",
            "OS_ENDPOINT_TYPE": "internalURL",
            "OS_IDENTITY_API_VERSION": "3",
        }
    )
    assert (auth.auth_url, auth.username, auth.project_name) == ("http://127.0.0.1:5000/v3", "alice", "demo")
    assert auth.password.get_secret_value() == "secret"
    assert (auth.user_domain_name, auth.project_domain_id) == ("people", "default")
    assert (auth.region_name, auth.interface) == ("lab", "internal")


@pytest.mark.parametrize("name", OPENRC)
def test_a_variable_is_missing(name: str) -> None:
    """What is missing is named, and where it comes from; an empty variable is as good as none."""
    for incomplete in ({key: value for key, value in OPENRC.items() if key != name}, OPENRC | {name: ""}):
        with pytest.raises(ConfigurationError, match=rf"{name}: not set .*openrc"):
            auth_from(incomplete)


@pytest.mark.parametrize(
    ("name", "value"), [("OS_AUTH_URL", "keystone"), ("OS_INTERFACE", "secret"), ("OS_AUTH_TYPE", "v3kerberos")]
)
def test_a_variable_is_wrong(name: str, value: str) -> None:
    """A value that cannot be used is told with its variable."""
    with pytest.raises(ConfigurationError, match=name):
        auth_from(OPENRC | {name: value})


def test_without_keystone() -> None:
    """OS_AUTH_TYPE=none asks without a token."""
    assert auth_from({"OS_AUTH_TYPE": "none"}).type == "none"
