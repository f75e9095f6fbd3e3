"""What operators see and change: metrics, health, dashboard, history, and the admin API."""
