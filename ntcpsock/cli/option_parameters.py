"""Settings of servers as options of a command: out of the one table, so that each has one text."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from ntcpsock._servers.option import Option

_TYPES: dict[str, Any] = {
    "text": str | None,
    "list": list[str] | None,
    "number": float | None,
    "integer": int | None,
    "path": Path | None,
    "switch": bool,
}


def with_options(command: Callable[..., None], options: Sequence[Option], panel: str) -> Callable[..., None]:
    """`command` with a parameter more for each of `options`, given to it as keyword arguments; in the help they have
    a panel of their own."""
    own = inspect.signature(command, eval_str=True)
    parameters = [
        parameter for parameter in own.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD
    ]
    for option in options:
        text = option.help[0].upper() + option.help[1:] + "."
        flag = f"--{option.name.replace('_', '-')}"
        info = typer.Option(flag, metavar=option.metavar, help=text, rich_help_panel=panel)
        if option.kind == "switch":
            info = typer.Option(flag, help=text, rich_help_panel=panel)
        parameters.append(
            inspect.Parameter(
                option.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=option.default,
                annotation=Annotated[_TYPES[option.kind], info],
            )
        )

    @wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        command(*args, **kwargs)

    # Both are looked at by typer.
    wrapper.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapper
