"""`python -m edge_server CONFIG.toml`: the same as `sfl edge CONFIG.toml`."""

import typer

from edge_server.command import edge

if __name__ == "__main__":
    typer.run(edge)
