"""What Glance says of an image's data: that it is there, and in a form that hosts take."""

from dataclasses import dataclass
from enum import StrEnum

from sev_agent.sev.refusals import ImageFormatUnsupported, ImageInactive, RequestRefused, Subject
from sev_agent.sev.verdict import Verdict


class DiskFormat(StrEnum):
    """The disk formats that are accepted. Every other one can name files of the host, or is too rare to be tested."""

    QCOW2 = "qcow2"
    RAW = "raw"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageForm:
    """Fields of an image, by Glance's names."""

    status: str
    disk_format: str | None
    container_format: str | None


def check_form(form: ImageForm) -> DiskFormat:
    """The image's format. Raises ``ImageInactive``, ``ImageFormatUnsupported``."""
    for verdict in judge_form(form):
        if verdict.refusal is not None:
            raise verdict.refusal
    return DiskFormat(form.disk_format or "")


def judge_form(form: ImageForm) -> tuple[Verdict, ...]:
    """The verdict of every rule on an image's form, in the order in which one would mend them."""
    return (_status(form), _disk_format(form), _container_format(form))


def _status(form: ImageForm) -> Verdict:
    refusal = ImageInactive(
        Subject.IMAGE,
        "status",
        expected="'active'",
        found=repr(form.status),
        remedy="upload the image's data, or reactivate it, and wait until 'openstack image show' says 'active'",
        field="image.status",
    )
    return _verdict("image is there", refusal, is_good=form.status == "active")


def _disk_format(form: ImageForm) -> Verdict:
    refusal = ImageFormatUnsupported(
        Subject.IMAGE,
        "disk_format",
        expected=" or ".join(repr(each.value) for each in DiskFormat),
        found="not set" if form.disk_format is None else repr(form.disk_format),
        remedy="convert it (qemu-img convert -O qcow2 SOURCE TARGET) and upload it with --disk-format qcow2",
        field="image.disk_format",
    )
    return _verdict("disk format", refusal, is_good=form.disk_format in set(DiskFormat))


def _container_format(form: ImageForm) -> Verdict:
    refusal = ImageFormatUnsupported(
        Subject.IMAGE,
        "container_format",
        expected="'bare' or not set",
        found="not set" if form.container_format is None else repr(form.container_format),
        remedy="unpack the disk image and upload it with --container-format bare",
        field="image.container_format",
    )
    return _verdict("container format", refusal, is_good=form.container_format in {None, "bare"})


def _verdict(name: str, refusal: RequestRefused, *, is_good: bool) -> Verdict:
    return Verdict(
        name=name,
        subject=refusal.subject,
        property_name=refusal.name,
        expected=refusal.expected,
        found=refusal.found,
        refusal=None if is_good else refusal,
    )
