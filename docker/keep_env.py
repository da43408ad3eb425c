"""Keep this shell's SFL_ variables in docker/.env, where each later compose command reads them.

Without them another shell's `up --scale` would build and start every container anew.
"""

import os
import re
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    """Put in what is set here and read by a compose file; what stands there already stays."""
    texts = [path.read_text(encoding="utf-8") for path in HERE.glob("*.yml")]
    known = {name for text in texts for name in re.findall(r"\$\{(SFL_\w+)", text)}
    file = HERE / ".env"
    lines = file.read_text(encoding="utf-8").splitlines()
    kept = {name: value for line in lines for name, _, value in [line.partition("=")]}
    given = {name: os.environ[name] for name in sorted(known) if name in os.environ}
    if given.items() <= kept.items():
        return
    text = "".join(f"{name}={value}\n" for name, value in (kept | given).items())
    file.write_text(text, encoding="utf-8")
    file.chmod(0o600)  # an index's address may hold a password


main()
