"""exo: a cluster that serves OpenAI's API."""

from nexus.providers.base import Provider

PROVIDER = Provider(name="exo", self_hosted=True)
