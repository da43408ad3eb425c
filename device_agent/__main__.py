"""`python -m device_agent CONFIG.toml`: the same as `sfl device CONFIG.toml`."""

import typer

from device_agent.command import device

if __name__ == "__main__":
    typer.run(device)
