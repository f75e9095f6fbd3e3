"""Configuration: from TOML, environment and command line to one frozen tree of records."""

from nexus.config.loading import ConfigError, LoadedConfig, load, process_config
from nexus.config.records import BackendConfig, Config

__all__ = ["BackendConfig", "Config", "ConfigError", "LoadedConfig", "load", "process_config"]
