#!/bin/sh
# Installs Nexus from this checkout, or removes it. Run it again to upgrade; it writes only files that differ.
set -eu

usage() {
    cat <<'END'
Usage: deploy/install.sh [options]

  --dry-run       print what it would do, and do nothing
  --uninstall     remove the installation, but keep the configuration and /var/lib/nexus
  --purge         with --uninstall: remove those, too
  --wheels DIR    take the packages from this directory instead of the network; in the checkout,
                  `pip wheel -r requirements.txt . -w DIR` fills it
  --python PROG   create the virtual environment with this Python, 3.11 or newer [python3]

  $DESTDIR        a directory to install into instead of /; creates no user and reloads no service

Installed files:

  /opt/nexus/releases/…       a virtual environment for each of the last three releases
  /opt/nexus/current          a link to the release that the next start uses
  /etc/systemd/system/        nexus.socket, nexus.service, nexus-health.service, nexus.target
  /etc/tmpfiles.d/nexus.conf  the run directory, /run/nexus
  /etc/sysusers.d/nexus.conf  the user
  /usr/local/bin/nexus        the command line, with /etc/nexus/nexus.toml
  /etc/nexus/                 nexus.toml, nexus.env, credentials/: yours; existing files are never overwritten
END
}

action=install dry_run="" purge="" wheels="" python=python3
while [ $# -gt 0 ]; do
    case $1 in
    --dry-run) dry_run=yes ;;
    --uninstall) action=uninstall ;;
    --purge) purge=yes ;;
    --wheels) wheels=${2:?"--wheels takes a directory"} && shift ;;
    --python) python=${2:?"--python takes a program"} && shift ;;
    -h | --help) usage && exit 0 ;;
    *) usage >&2 && exit 2 ;;
    esac
    shift
done

root=${DESTDIR:-}
root=${root%/}
source=$(cd "$(dirname "$0")/.." && pwd)
opt=$root/opt/nexus
etc=$root/etc/nexus
command=$root/usr/local/bin/nexus
units="nexus.socket nexus.service nexus-health.service nexus.target"

say() { printf '%s\n' "$*"; }
fail() { printf '%s\n' "$*" >&2 && exit 1; }
run() { if [ "$dry_run" ]; then say "would run: $*"; else "$@"; fi; }
# Whether this is a running system with systemd.
live() { [ -z "$root" ] && [ -d /run/systemd/system ]; }

# Installs a file if it differs from the installed one.
put() { # mode, from, to
    if ! cmp -s "$2" "$3"; then
        say "$3"
        run install -D -m "$1" "$2" "$3"
    fi
}

# Installs a file unless it exists: from then on it belongs to the operator.
offer() { # mode, from, to
    if [ -e "$3" ]; then
        cmp -s "$2" "$3" || say "$3 stays as it is"
    else
        put "$1" "$2" "$3"
    fi
}

# The name contains a hash of the sources, so that installing the same checkout again does nothing.
release_name() {
    version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' "$source/nexus/__init__.py")
    digest=$(cd "$source" && find nexus nexus_demo pyproject.toml requirements.txt gunicorn.conf.py -type f ! -name '*.pyc' |
        LC_ALL=C sort | while read -r file; do sha256sum "$file"; done | sha256sum | cut -c 1-8)
    say "$version-$digest"
}

# Whether /usr/local/bin/nexus is free, or was installed by this script.
command_is_ours() { [ ! -e "$command" ] || grep -q /opt/nexus/current/ "$command"; }

make_release() {
    say "$release"
    run rm -rf "$release"
    run mkdir -p "$opt/releases"
    run "$python" -m venv "$release"
    # pip compiles the modules now, because the services may not write there.
    set -- "$release/bin/python" -m pip install --quiet --disable-pip-version-check --no-warn-script-location
    if [ "$wheels" ]; then
        set -- "$@" --no-index --find-links "$wheels"
        run "$@" -r "$source/requirements.txt"
        run "$@" --no-deps nexus-gateway
    else
        # pip unpacks and runs only packages with these hashes.
        run "$@" --require-hashes -r "$source/deploy/requirements.lock"
        run "$@" --no-deps --no-build-isolation "$source"
    fi
    run install -m 644 "$source/gunicorn.conf.py" "$release/gunicorn.conf.py"
    [ -z "$root" ] || run leave_destdir
    run touch "$release/complete"
}

# The programs contain the absolute path of their Python: write the final one, without $DESTDIR.
leave_destdir() {
    grep -rlIF "$root/opt" "$release/bin" "$release/pyvenv.cfg" | while read -r file; do
        sed -i "s|$root/opt|/opt|g" "$file"
    done
}

switch_to_release() {
    if [ "$(readlink "$opt/current" || :)" != "releases/$name" ]; then
        say "$opt/current -> releases/$name"
        run ln -sfn "releases/$name" "$opt/current"
    fi
    # Keep the three newest: processes of an older one may still run.
    [ ! -d "$opt/releases" ] || find "$opt/releases" -mindepth 1 -maxdepth 1 -printf '%T@ %p\n' | sort -rn |
        tail -n +4 | cut -d ' ' -f 2- | while read -r old; do run rm -rf "$old"; done
}

install_all() {
    [ "$root" ] || [ "$dry_run" ] || [ "$(id -u)" = 0 ] || fail "Run this as root, or name a directory in \$DESTDIR."
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "$python is not Python 3.11 or newer; name one that is with --python."
    "$python" -c 'import ensurepip' 2>/dev/null || fail "$python has no ensurepip; on Debian, install python3-venv."
    case $("$python" -c 'import sys; print(sys.base_prefix)') in
    /home/* | /root/*) say "Warning: this Python is in a home directory, which the services cannot see." ;;
    esac

    name=$(release_name)
    release=$opt/releases/$name
    [ -e "$release/complete" ] || make_release
    switch_to_release

    for unit in $units; do put 644 "$source/deploy/systemd/$unit" "$root/etc/systemd/system/$unit"; done
    put 644 "$source/deploy/systemd/tmpfiles.conf" "$root/etc/tmpfiles.d/nexus.conf"
    put 644 "$source/deploy/systemd/sysusers.conf" "$root/etc/sysusers.d/nexus.conf"
    offer 644 "$source/deploy/systemd/nexus.toml" "$etc/nexus.toml"
    offer 644 "$source/deploy/systemd/nexus.env" "$etc/nexus.env"
    if command_is_ours; then
        put 755 "$source/deploy/systemd/nexus" "$command"
    else
        say "$command is another program and stays as it is; the command line is /opt/nexus/current/bin/nexus."
    fi
    [ -d "$etc/credentials" ] || run install -d -m 700 "$etc/credentials"

    if live; then
        run systemd-sysusers /etc/sysusers.d/nexus.conf
        run systemd-tmpfiles --create /etc/tmpfiles.d/nexus.conf
        run systemctl daemon-reload
        say "Next: name your backends in /etc/nexus/nexus.toml, then systemctl enable --now nexus.target."
        say "After an upgrade: systemctl restart nexus.target; connections wait meanwhile, none is refused."
    fi
}

uninstall_all() {
    [ "$root" ] || [ "$dry_run" ] || [ "$(id -u)" = 0 ] || fail "Run this as root, or name a directory in \$DESTDIR."
    if live && [ -e /etc/systemd/system/nexus.target ]; then
        run systemctl disable --now nexus.target
    fi
    for unit in $units; do run rm -f "$root/etc/systemd/system/$unit"; done
    run rm -f "$root/etc/tmpfiles.d/nexus.conf" "$root/etc/sysusers.d/nexus.conf"
    if command_is_ours; then run rm -f "$command"; fi
    run rm -rf "$opt"
    [ "$root" ] || run rm -rf /run/nexus
    if [ "$purge" ]; then
        run rm -rf "$etc" "$root/var/lib/nexus"
        run rm -rf "$root/etc/systemd/system/nexus.socket.d" "$root/etc/systemd/system/nexus.service.d" \
            "$root/etc/systemd/system/nexus-health.service.d"
        if live && getent passwd nexus >/dev/null; then run userdel nexus; fi
    fi
    if live; then run systemctl daemon-reload; fi
    # Remove directories that are empty now.
    [ -z "$root" ] || for directory in opt usr/local/bin etc/systemd/system etc/tmpfiles.d etc/sysusers.d etc var/lib; do
        [ ! -d "$root/$directory" ] || (cd "$root" && run rmdir -p --ignore-fail-on-non-empty "$directory")
    done
}

"${action}_all"
