import pytest

from sev_agent.sev.image_form import DiskFormat, ImageForm, check_form, judge_form
from sev_agent.sev.refusals import RequestRefused


@pytest.mark.parametrize(("disk_format", "container_format"), [("qcow2", "bare"), ("raw", None)])
def test_accepted(disk_format: str, container_format: str | None) -> None:
    """An active qcow2 or raw image, not packed into anything, is accepted."""
    form = ImageForm(status="active", disk_format=disk_format, container_format=container_format)
    assert check_form(form) is DiskFormat(disk_format)


@pytest.mark.parametrize(
    ("changes", "code", "text"),
    [
        (
            {"status": "queued"},
            "image.inactive",
            "image property 'status' is 'queued', but must be 'active'",
        ),
        ({"status": "deactivated"}, "image.inactive", "'deactivated'"),
        ({"disk_format": "vmdk"}, "image.format_unsupported", "is 'vmdk', but must be 'qcow2' or 'raw' (convert it"),
        ({"disk_format": None}, "image.format_unsupported", "'disk_format' is not set"),
        ({"disk_format": ""}, "image.format_unsupported", "'disk_format' is ''"),
        ({"container_format": "ova"}, "image.format_unsupported", "'container_format' is 'ova'"),
    ],
)
def test_refused(changes: dict[str, str | None], code: str, text: str) -> None:
    """An image without data, or of another form, is refused with what it must be and how to get there."""
    fields = {"status": "active", "disk_format": "qcow2", "container_format": "bare", **changes}
    form = ImageForm(**fields)  # type: ignore[arg-type]  # the cases set strings where strings must be
    with pytest.raises(RequestRefused) as caught:
        check_form(form)
    assert caught.value.code == code
    assert text in str(caught.value)
    assert [verdict.ok for verdict in judge_form(form)].count(False) == 1
