"""The health process: probes the backends, publishes the fleet, writes its gauges, answers scrapes on its own port."""
