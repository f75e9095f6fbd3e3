"""What every process needs: logging, service notification, host facts. No domain knowledge."""
