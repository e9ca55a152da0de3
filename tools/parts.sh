#!/bin/sh
# Install the real parts that the tests start by themselves: engines, PostgreSQL, the BOINC client, Chromium.
set -eu
missing=""
need() { # need PROGRAM PACKAGE...
    program=$1
    shift
    command -v "$program" >/dev/null || [ -x "$program" ] || missing="$missing $*"
}
need podman podman
need runc runc
need crun crun
need newuidmap uidmap
need slirp4netns slirp4netns
need chromium chromium
need chromedriver chromium-driver
need boinc boinc-client
need gcc gcc libc6-dev
ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || missing="$missing postgresql"
[ -z "$missing" ] && exit 0

echo "The tests need:$missing" >&2
if [ "$(id -u)" = 0 ]; then
    run=""
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    run="sudo -n"
else
    echo "This user may not install packages. Ask an administrator for: apt-get install$missing" >&2
    exit 1
fi
# Installed services must not start by themselves: the tests start their own, on loopback.
policy=/usr/sbin/policy-rc.d
made=""
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' | $run tee "$policy" >/dev/null
    $run chmod 755 "$policy"
    made=yes
fi
status=0
$run apt-get -qq update
# shellcheck disable=SC2086  # a list of packages
$run env DEBIAN_FRONTEND=noninteractive apt-get -y -qq --no-install-recommends install $missing >/dev/null || status=$?
[ -z "$made" ] || $run rm -f "$policy"
exit $status
