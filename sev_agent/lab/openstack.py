"""Keystone, Glance and Placement of a lab: their configuration, and how they are started."""

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sev_agent.lab.probe import http_answers
from sev_agent.lab.service import Service

PORT_NAMES = ("keystone", "glance", "placement")
REGION = "lab"
SERVICE_USER = "sev-agent"
SERVICE_PROJECT = "service"

_LAUNCHER = Path(__file__).with_name("wsgi.py")

# The databases need not survive a loss of power, only of a process: they do not wait for the disk.

# Least that bcrypt allows: a lab's passwords are random, and each login would cost a quarter of a second of CPU.
_KEYSTONE = """\
[DEFAULT]
use_stderr = true
log_file =
[database]
connection = sqlite:///{home}/keystone.db
sqlite_synchronous = false
[token]
provider = fernet
[fernet_tokens]
key_repository = {home}/fernet-keys
[credential]
key_repository = {home}/credential-keys
[identity]
password_hash_rounds = 4
[cache]
enabled = true
backend = dogpile.cache.memory
"""

_GLANCE = """\
[DEFAULT]
use_stderr = true
enabled_backends = file:file
worker_self_reference_url = {glance}
enabled_import_methods = []
show_image_direct_url = false
[glance_store]
default_backend = file
[file]
filesystem_store_datadir = {home}/images
[os_glance_staging_store]
filesystem_store_datadir = {home}/staging
[os_glance_tasks_store]
filesystem_store_datadir = {home}/tasks
[database]
connection = sqlite:///{home}/glance.db
sqlite_synchronous = false
[paste_deploy]
flavor = keystone
config_file = {environment}/etc/glance/glance-api-paste.ini
{keystone_authtoken}"""

_PLACEMENT = """\
[DEFAULT]
use_stderr = true
[api]
auth_strategy = keystone
[placement_database]
connection = sqlite:///{home}/placement.db
sqlite_synchronous = false
sync_on_startup = true
{keystone_authtoken}"""

_KEYSTONE_AUTHTOKEN = """\
[keystone_authtoken]
www_authenticate_uri = {keystone}/v3
auth_url = {keystone}/v3
auth_type = password
username = {user}
password = {password}
project_name = {project}
user_domain_name = Default
project_domain_name = Default
region_name = {region}
interface = public
service_token_roles_required = true
token_cache_time = 300
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenStack:
    """The three services. ``environment`` is the virtual environment that they run from."""

    directory: Path
    environment: Path
    ports: Mapping[str, int]
    password: str

    @property
    def keystone_url(self) -> str:
        return f"http://127.0.0.1:{self.ports['keystone']}"

    @property
    def glance_url(self) -> str:
        return f"http://127.0.0.1:{self.ports['glance']}"

    @property
    def placement_url(self) -> str:
        return f"http://127.0.0.1:{self.ports['placement']}"

    def prepare(self) -> None:
        """Write the configuration of all three. Blocks on the disk."""
        texts = {
            "keystone/keystone.conf": _KEYSTONE,
            "glance/glance-api.conf": _GLANCE,
            "placement/placement.conf": _PLACEMENT,
        }
        authtoken = _KEYSTONE_AUTHTOKEN.format(
            keystone=self.keystone_url,
            user=SERVICE_USER,
            password=self.password,
            project=SERVICE_PROJECT,
            region=REGION,
        )
        for name, text in texts.items():
            path = self.directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
            path.write_text(
                text.format(
                    home=path.parent,
                    environment=self.environment,
                    glance=self.glance_url,
                    keystone_authtoken=authtoken,
                )
            )
            _write_ahead(path.parent / f"{path.parent.name}.db")
        for part in ("keystone/fernet-keys", "keystone/credential-keys", "glance/images", "glance/staging"):
            (self.directory / part).mkdir(mode=0o700, exist_ok=True)

    def keystone(self) -> Service:
        home = self.directory / "keystone"
        manage = ("keystone.cmd.manage", "keystone-manage", "--config-file", f"{home}/keystone.conf")
        url = f"{self.keystone_url}/v3"
        run_as = ("--keystone-user", "root", "--keystone-group", "root")
        return self._service(
            "keystone",
            kind="identity",
            application="keystone.wsgi.api:application",
            # Two first logins of a day at once, each read and then written down, make SQLite refuse one of them.
            threads=1,
            ready_url=url,
            environment={"OS_KEYSTONE_CONFIG_DIR": str(home), "OS_BOOTSTRAP_PASSWORD": self.password},
            prepare=(
                (*manage, "db_sync"),
                (*manage, "fernet_setup", *run_as),
                (*manage, "credential_setup", *run_as),
                (*manage, "bootstrap", "--bootstrap-region-id", REGION, "--bootstrap-public-url", url),
            ),
        )

    def glance(self) -> Service:
        home = self.directory / "glance"
        manage = ("glance.cmd.manage", "glance-manage", "--config-file", f"{home}/glance-api.conf")
        return self._service(
            "glance",
            kind="images",
            application="glance.wsgi.api:application",
            threads=4,
            ready_url=f"{self.glance_url}/versions",
            environment={"OS_GLANCE_CONFIG_DIR": str(home)},
            prepare=((*manage, "db_sync"),),
        )

    def placement(self) -> Service:
        # One thread: on SQLite concurrent writers fail as "database is locked".
        return self._service(
            "placement",
            kind="resource counts",
            application="placement.wsgi.api:application",
            threads=1,
            ready_url=f"{self.placement_url}/",
            environment={"OS_PLACEMENT_CONFIG_DIR": str(self.directory / "placement")},
        )

    def _service(
        self,
        name: str,
        *,
        kind: str,
        application: str,
        threads: int,
        ready_url: str,
        environment: Mapping[str, str],
        prepare: tuple[tuple[str, ...], ...] = (),
    ) -> Service:
        home = self.directory / name
        port = self.ports[name]
        options = (
            *("--name", name, "--port", str(port), "--threads", str(threads)),
            *("--prepare", json.dumps(prepare), "--prepared", str(home / "prepared")),
        )
        # -P: the launcher's own directory has modules named as the standard library's and as the services' are.
        python = (str(self.environment / "bin" / "python"), "-P", "-u")
        return Service(
            name=name,
            kind=kind,
            address=f"http://127.0.0.1:{port}",
            command=(*python, str(_LAUNCHER), *options, application),
            environment=environment,
            port=port,
            ready=lambda: http_answers(ready_url),
            ready_timeout=120,
            stop_timeout=5,
            cwd=home,
        )


def _write_ahead(database: Path) -> None:
    """Make SQLite keep a write-ahead log for ``database``: readers then never wait for a writer. It stays so."""
    connection = sqlite3.connect(database)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
    finally:
        connection.close()
