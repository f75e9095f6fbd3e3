"""The health process: probes backends, publishes the snapshot, and serves the operations port."""
