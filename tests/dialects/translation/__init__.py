"""Translations between the protocols of clients and backends."""
