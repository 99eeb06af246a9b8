"""Versions as ``major.minor.micro``."""


def parse(text: str) -> tuple[int, ...]:
    """Its numbers, up to the first part that is none."""
    numbers = []
    for part in text.split("."):
        if not (part.isascii() and part.isdecimal()):
            break
        numbers.append(int(part))
    return tuple(numbers)
