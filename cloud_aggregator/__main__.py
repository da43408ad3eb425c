"""`python -m cloud_aggregator CONFIG.toml`: the same as `sfl cloud CONFIG.toml`."""

import typer

from cloud_aggregator.command import cloud

if __name__ == "__main__":
    typer.run(cloud)
