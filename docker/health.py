"""Whether the node in this container serves its metrics; the image's health check.

Asks $SFL_HEALTH, and trusts the CA in /certs. Standard library only, so that it starts at once.
"""

from __future__ import annotations

import os
import ssl
import sys
import urllib.error
import urllib.request
from pathlib import Path

CA = Path("/certs/ca.pem")


def problem(url: str, ca: Path) -> str | None:
    """What is wrong, if anything."""
    try:
        tls = ssl.create_default_context(cafile=ca) if url.startswith("https:") else None
        with urllib.request.urlopen(url, timeout=8, context=tls) as answer:
            answer.read()
    except urllib.error.HTTPError as error:
        # A node that asks for a password is there.
        return None if error.code == 401 else f"{url}: {error}"
    except OSError as error:
        return f"{url}: {error}"
    return None


if __name__ == "__main__":
    sys.exit(problem(os.environ.get("SFL_HEALTH", "https://localhost:9400/metrics"), CA))
