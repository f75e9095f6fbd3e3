"""OpenAI's protocol: requests, whole responses, streams, usage."""
