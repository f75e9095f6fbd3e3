"""Flask blueprints: the OpenAI endpoints and the operations paths. They turn WSGI into the engine's terms and back."""
