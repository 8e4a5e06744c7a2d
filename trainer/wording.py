"""Numbers in words that people read."""


def counted(number: int, what: str) -> str:
    """The number and its noun: `1 trial`, `2 trials`."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
