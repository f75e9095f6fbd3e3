"""The health process: it probes the backends, publishes the fleet, and has a port of its own."""
