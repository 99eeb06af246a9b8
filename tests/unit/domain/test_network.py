import pytest

from sev_agent.domain import network
from sev_agent.domain.spec import Nic
from sev_agent.schema import NetworkKind
from tests.unit.domain.configured import configured, texts

REST = '<model type="virtio"/><driver iommu="on"/><rom enabled="no"/></interface>'


@pytest.mark.parametrize(
    ("kind", "source", "element"),
    [
        (NetworkKind.USER, None, ""),
        (NetworkKind.BRIDGE, "br-ex", '<source bridge="br-ex"/>'),
        (NetworkKind.NETWORK, "default", '<source network="default"/>'),
    ],
)
def test_kinds(kind: NetworkKind, source: str | None, element: str) -> None:
    """Each kind names its source as libvirt does; all are virtio with iommu and without a boot ROM."""
    nic = Nic(kind=kind, mac="fa:16:3e:00:00:01", source=source)

    assert texts(configured(network.configure, nics=(nic,))) == [
        f'<interface type="{kind.value}"><mac address="fa:16:3e:00:00:01"/>{element}{REST}'
    ]


def test_none() -> None:
    """No NIC asked for is no NIC."""
    assert texts(configured(network.configure, nics=())) == []
