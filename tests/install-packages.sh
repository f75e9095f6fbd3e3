#!/bin/sh
# Installs the Debian packages whose programs the tests start, where it may; says which are missing where it may not.
set -eu

PATH="$PATH:/usr/sbin:/sbin"
missing=""
need() { command -v "$1" >/dev/null 2>&1 || missing="$missing $2"; }
need prometheus prometheus
need promtool prometheus
need curl curl
need pgrep procps
need git git
need openssl openssl
need nginx nginx-light
need haproxy haproxy
need apache2 apache2
need wrk wrk
need chromium chromium
need shellcheck shellcheck
need systemd-analyze systemd

# shellcheck disable=SC2086 # a list of words
missing=$(printf '%s\n' $missing | sort -u | tr '\n' ' ')
[ -n "$(printf '%s' "$missing" | tr -d ' ')" ] || exit 0

if command -v apt-get >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    # shellcheck disable=SC2086 # a list of words
    apt-get install -y -qq --no-install-recommends $missing >/dev/null
else
    echo "The tests start programs of these Debian packages; install them first: $missing" >&2
    exit 1
fi
