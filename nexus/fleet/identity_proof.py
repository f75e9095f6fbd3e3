"""How a gateway proves who it is to a command that can read its run directory, before the command sends a token.

The command sends a random challenge with `GET /livez`. The gateway answers with an HMAC of the challenge and of the
port that the connection came in by; the key is the token of the run directory, which neither side sends. An impostor
on the gateway's port has no key, and passing the challenge on to the gateway's real port gives another proof.
"""

from __future__ import annotations

import hmac

CHALLENGE = "x-nexus-challenge"
PROOF = "x-nexus-proof"


def proof(key: str, challenge: str, port: int) -> str:
    return hmac.digest(key.encode(), f"{port} {challenge}".encode(), "sha256").hex()
