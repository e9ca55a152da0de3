#!/bin/sh
# Make .venv and install the program into it; with --dev also what its tests need. Nothing happens when it is up to date.
set -eu
cd "$(dirname "$0")/.."
want="run"
[ "${1:-}" = "--dev" ] && want="dev"
stamp=".venv/installed-$want"
[ -e "$stamp" ] && [ "$stamp" -nt pyproject.toml ] && exit 0

say() { printf '%s\n' "$*" >&2; }
python=""
for name in python3.13 python3.12 python3.11 python3; do
    if command -v "$name" >/dev/null && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        python=$name
        break
    fi
done
[ -n "$python" ] || { say "Python 3.11 or later is needed. Install it: apt-get install python3"; exit 1; }

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
        sudo -n "$@"
    else
        return 1
    fi
}

if [ ! -x .venv/bin/pip ]; then
    rm -rf .venv
    if ! "$python" -c 'import ensurepip' 2>/dev/null; then
        say "This Python cannot make virtual environments by itself; installing python3-venv."
        if ! { as_root apt-get -qq update && as_root env DEBIAN_FRONTEND=noninteractive apt-get -y -qq install python3-venv >/dev/null; }; then
            say "It could not be installed. Ask an administrator for: apt-get install python3-venv"
            exit 1
        fi
    fi
    "$python" -m venv .venv
fi
say "Installing Distribut.io into .venv (once)..."
.venv/bin/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
if [ "$want" = dev ]; then
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable . --group dev
else
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable .
fi
touch "$stamp"
