"""Which backend next, and why: pure functions of the fleet, the load and the request. No I/O, no clock, no globals."""
