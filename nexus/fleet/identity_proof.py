"""How a gateway proves its identity to a command, before the command sends it a token.

The command can read the gateway's run directory. It sends a random challenge with `GET /livez`.
The gateway responds with an HMAC of the challenge and of the port of the connection. The key is the
token of the run directory, which neither side sends. An impostor on the gateway's port has no key.
If it forwards the challenge to the gateway's real port, it gets the proof for that port.
"""

from __future__ import annotations

import hmac

CHALLENGE = "x-nexus-challenge"
PROOF = "x-nexus-proof"


def proof(key: str, challenge: str, port: int) -> str:
    return hmac.digest(key.encode(), f"{port} {challenge}".encode(), "sha256").hex()
