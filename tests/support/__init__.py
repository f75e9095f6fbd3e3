"""What the tests share: real processes on loopback, figures read from real scrapes, polling with
deadlines."""
