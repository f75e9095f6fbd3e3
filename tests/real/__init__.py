"""The gateway in front of real model servers, behind real clients. Run by `make check-real`;
installs what it can."""
