"""`ntcp id`: who this node is."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from ntcpsock.cli.options import Name, StateDir
from ntcpsock.cli.output import Output, fail


def identity(
    name: Name = None,
    state_dir: StateDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="An object instead of the bare id.")] = False,
) -> None:
    """Print this node's id: its public key in base32. The key is made at first use."""
    from ntcpsock._config import Config
    from ntcpsock._state import load_identity

    try:
        config = Config.load(name=name, state_dir=state_dir)
        path = config.identity or config.state_dir / "node.key"
        node_id = load_identity(path).node_id
    except OSError as error:
        fail(Output(), error)
    if as_json:
        print(json.dumps({"node_id": node_id, "name": config.name, "key_file": str(path)}))
    else:
        print(node_id)
