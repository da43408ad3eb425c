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
        with _opener(tls).open(url, timeout=8) as answer:
            answer.read()
    except urllib.error.HTTPError as error:
        # A node that asks for a password is there.
        return None if error.code == 401 else f"{url}: {error}"
    except OSError as error:
        return f"{url}: {error}"
    return None


def _opener(tls: ssl.SSLContext | None) -> urllib.request.OpenerDirector:
    """The node is here: no proxy of the environment stands between."""
    direct = urllib.request.ProxyHandler({})
    return urllib.request.build_opener(direct, urllib.request.HTTPSHandler(context=tls))


if __name__ == "__main__":
    sys.exit(problem(os.environ.get("SFL_HEALTH", "https://localhost:9400/metrics"), CA))
