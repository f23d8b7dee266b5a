"""The one form in which the demo's commands (`serve`, `ask`) tell a person that something cannot be done."""

from __future__ import annotations


class UserError(Exception):
    """What is required, what was found, what to do."""

    def __init__(self, required: str, found: str, do: str) -> None:
        super().__init__(f"required  {required}\nfound     {found}\ndo this   {do}")
