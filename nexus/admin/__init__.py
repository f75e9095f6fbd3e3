"""What operators see and change: metrics, dashboard, history, problems, backends, OpenAPI."""
