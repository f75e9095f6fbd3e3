"""The master imports the program before it forks, and gevent patches each worker after that."""

import json
import subprocess
import sys

PROGRAM = """
import json, sys, types
import gunicorn.app.wsgiapp, nexus.app, nexus.server.hooks, nexus.server.worker
from gevent import monkey
monkey.patch_all()
blocking = {
    id(original): f"{module}.{name}"
    for module, originals in monkey.saved.items() for name, original in originals.items()
    if callable(original)
}
found = {
    f"{name}.{attribute}": blocking[id(value)]
    for name, module in sys.modules.items()
    if isinstance(module, types.ModuleType)
    and not name.startswith("gevent") and name not in sys.stdlib_module_names
    for attribute, value in vars(module).items()
    if id(value) in blocking
}
print(json.dumps(found))
"""
HARMLESS = {"threading.Lock", "threading._CRLock", "threading.local", "threading.get_ident"}
"""Nothing waits while it holds such a lock, so no greenlet finds it taken."""


def test_no_module_keeps_a_blocking_function():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, check=True)
    kept = {name: of for name, of in json.loads(done.stdout).items() if of not in HARMLESS}
    assert kept == {"nexus.runtime.stderr.select": "select.select"}, "called with a timeout of 0"
