"""A small, real backend: speaks OpenAI's protocol over a socket, makes up readable text, and
misbehaves on request."""
