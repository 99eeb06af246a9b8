"""A RabbitMQ node of the lab's own, with a port mapper (epmd) of its own."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from sev_agent.lab.probe import amqp_answers, tcp_answers
from sev_agent.lab.service import Service

USER = "sev-agent"
PORT_NAMES = ("rabbitmq", "rabbitmq-distribution", "rabbitmq-epmd")

_SERVER = "/usr/lib/rabbitmq/bin/rabbitmq-server"
_CONFIGURATION = """\
listeners.tcp.1 = 127.0.0.1:{port}
default_user = {user}
default_pass = {password}
default_user_tags.administrator = true
log.console = true
log.console.level = info
log.file = false
disk_free_limit.absolute = 100MB
"""


def services(directory: Path, ports: Mapping[str, int]) -> tuple[Service, Service]:
    """The port mapper, then the node. Call ``prepare`` before they are started."""
    home = directory / "rabbitmq"
    environment = node_environment(directory, ports)
    epmd = Service(
        name="rabbitmq-epmd",
        kind="Erlang port mapper",
        command=("epmd", "-port", environment["ERL_EPMD_PORT"], "-address", "127.0.0.1"),
        environment=environment,
        ready=lambda: tcp_answers(ports["rabbitmq-epmd"]),
        port=ports["rabbitmq-epmd"],
        ready_timeout=15,
        cwd=home,
    )
    node = Service(
        name="rabbitmq",
        kind="message broker",
        address=f"127.0.0.1:{ports['rabbitmq']}",
        command=(_SERVER,),
        environment=environment,
        ready=lambda: amqp_answers(ports["rabbitmq"]),
        port=ports["rabbitmq"],
        ready_timeout=90,
        cwd=home,
    )
    return epmd, node


def node_environment(directory: Path, ports: Mapping[str, int]) -> dict[str, str]:
    """What both the node and ``rabbitmqctl`` must be told to meet each other."""
    home = directory / "rabbitmq"
    # Two nodes of one name cannot share a machine's Erlang cookie and tools without confusion.
    digest = hashlib.sha256(str(directory).encode()).hexdigest()[:8]
    return {
        "HOME": str(home),
        "RABBITMQ_NODENAME": f"sev-lab-{digest}@localhost",
        "RABBITMQ_CONFIG_FILE": str(home / "rabbitmq.conf"),
        "RABBITMQ_ADVANCED_CONFIG_FILE": str(home / "advanced.config"),
        "RABBITMQ_CONF_ENV_FILE": str(home / "rabbitmq-env.conf"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "enabled_plugins"),
        "RABBITMQ_MNESIA_BASE": str(home / "mnesia"),
        "RABBITMQ_LOG_BASE": str(home / "log"),
        "RABBITMQ_PID_FILE": str(home / "rabbitmq.pid"),
        "RABBITMQ_DIST_PORT": str(ports["rabbitmq-distribution"]),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        # Makes the start script become the node instead of waiting for it: the process started is the one that serves.
        "RUNNING_UNDER_SYSTEMD": "true",
        "ERL_EPMD_PORT": str(ports["rabbitmq-epmd"]),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
    }


def prepare(directory: Path, ports: Mapping[str, int], password: str) -> None:
    """Write the node's configuration. Blocks on the disk.

    The user is made together with the node's database, so ``password`` counts at the first start only.
    """
    home = directory / "rabbitmq"
    for part in ("mnesia", "log"):
        (home / part).mkdir(parents=True, exist_ok=True)
    configuration = home / "rabbitmq.conf"
    configuration.touch(mode=0o600)
    configuration.write_text(_CONFIGURATION.format(port=ports["rabbitmq"], user=USER, password=password))
    (home / "rabbitmq-env.conf").touch()
    (home / "enabled_plugins").write_text("[].\n")
