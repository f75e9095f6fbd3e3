"""What every process needs and no domain knows: logging, service notification, the host."""
