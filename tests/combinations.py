"""The seven combinations of the answers of a flavor and an image that the method distinguishes."""

from typing import Final

COMBINATIONS: Final[tuple[tuple[str | None, str | None, str | None], ...]] = (
    ("true", "true", None),
    (
        None,
        "true",
        (
            "flavor property 'hw:mem_encryption' is not set, but must be true"
            " (openstack flavor set --property hw:mem_encryption=true FLAVOR)"
        ),
    ),
    (
        "true",
        None,
        (
            "image property 'hw_mem_encryption' is not set, but must be true"
            " (openstack image set --property hw_mem_encryption=true IMAGE)"
        ),
    ),
    (
        "true",
        "false",
        (
            "image property 'hw_mem_encryption' is 'false', but must be true:"
            " flavor property 'hw:mem_encryption' is 'true', the opposite"
            " (openstack image set --property hw_mem_encryption=true IMAGE)"
        ),
    ),
    (
        "false",
        "true",
        (
            "flavor property 'hw:mem_encryption' is 'false', but must be true:"
            " image property 'hw_mem_encryption' is 'true', the opposite"
            " (openstack flavor set --property hw:mem_encryption=true FLAVOR)"
        ),
    ),
    (
        None,
        None,
        (
            "flavor property 'hw:mem_encryption' is not set, but must be true"
            " (openstack flavor set --property hw:mem_encryption=true FLAVOR)"
        ),
    ),
    (
        "false",
        "false",
        (
            "flavor property 'hw:mem_encryption' is 'false', but must be true"
            " (openstack flavor set --property hw:mem_encryption=true FLAVOR)"
        ),
    ),
)
"""What ``hw:mem_encryption`` of the flavor and ``hw_mem_encryption`` of the image are, and the text of the refusal."""
