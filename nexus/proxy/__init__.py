"""One request: checks, admission, attempts, relay, outcome. Independent of the server."""
