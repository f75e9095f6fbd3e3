"""One request's life: route, attempt, relay, finish once. Knows neither Flask nor gunicorn."""
