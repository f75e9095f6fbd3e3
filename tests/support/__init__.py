"""What the tests share: real processes on loopback, metrics read from real scrapes, polling with
deadlines."""
