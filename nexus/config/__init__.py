"""The configuration: TOML, environment, and command line become one tree of frozen records."""

from nexus.config.backend_records import BackendConfig
from nexus.config.checking import ConfigError
from nexus.config.loading import LoadedConfig, load, process_config
from nexus.config.records import Config

__all__ = ["BackendConfig", "Config", "ConfigError", "LoadedConfig", "load", "process_config"]
