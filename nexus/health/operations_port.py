"""The health process's own port: the same metrics as from any worker, and changes to the fleet.

It responds even if every worker is busy or dead.
"""

from __future__ import annotations

import logging

import gevent
from flask import Flask

from nexus.admin.access import require_own_host
from nexus.admin.backends import backend_endpoints
from nexus.admin.budgets import budget_endpoints
from nexus.admin.context import AdminContext
from nexus.admin.dashboard import dashboard_endpoints
from nexus.admin.error_handlers import HttpOnly, register_error_handlers
from nexus.admin.keys import key_endpoints
from nexus.admin.keys_page import keys_page
from nexus.admin.openapi import openapi_endpoint
from nexus.admin.operations import operations_endpoints
from nexus.admin.usage import UsageSource, usage_endpoints
from nexus.admin.usage_page import usage_page
from nexus.config.addresses import listen_address
from nexus.health.backend_admin import HealthBackendAdmin
from nexus.health.budget_admin import HealthBudgetAdmin
from nexus.health.key_admin import HealthKeyAdmin
from nexus.health.server import OperationsServer

log = logging.getLogger("nexus.health")

_RETRY_S = 5.0


def operations_app(
    context: AdminContext,
    admin: HealthBackendAdmin,
    *,
    keys: HealthKeyAdmin,
    budgets: HealthBudgetAdmin,
    usage: UsageSource,
) -> Flask:
    """Metrics, dashboard and changes as a WSGI application."""
    app = HttpOnly("nexus.health", static_folder=None)
    app.before_request(require_own_host(admin.own_names))
    app.register_blueprint(dashboard_endpoints(context))
    app.register_blueprint(operations_endpoints(context))
    app.register_blueprint(backend_endpoints(admin, token=admin.admin_token))
    app.register_blueprint(key_endpoints(keys, token=admin.admin_token))
    app.register_blueprint(keys_page(context, keys, token=admin.admin_token))
    app.register_blueprint(budget_endpoints(context, budgets, token=admin.admin_token))
    app.register_blueprint(usage_endpoints(usage, token=admin.admin_token))
    app.register_blueprint(usage_page(context, usage, token=admin.admin_token))
    app.register_blueprint(openapi_endpoint(operations=True))
    register_error_handlers(app, rejected=lambda _: None)
    return app


def serve_operations(listen: str, app: Flask) -> None:
    """Serve the port without end, and try again if it cannot be opened."""
    while True:
        server = OperationsServer(listen_address(listen), app)
        try:
            server.start()
        except OSError as error:
            log.error(
                "the operations port cannot be opened, trying again",
                extra={"listen": listen, "why": error},
            )
            gevent.sleep(_RETRY_S)
            continue
        server.serve_forever()
