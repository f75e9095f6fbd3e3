"""The dashboards, panel by panel."""

from tables.costs import COSTS
from tables.fleet import FLEET
from tables.keys import KEYS
from tables.overview import OVERVIEW
from tables.processes import PROCESSES
from tables.streams import STREAMS

DASHBOARDS = (OVERVIEW, STREAMS, FLEET, KEYS, COSTS, PROCESSES)
