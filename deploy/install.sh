#!/bin/sh
# Install bpfleet on this host: /opt/bpfleet (program), /etc/bpfleet (settings), systemd units.
#   deploy/install.sh             all of it: collector, sink, services, the operator's commands
#   deploy/install.sh collector   what every host needs, and nothing heavy
# Run as root from a checkout, after `deploy/setup.sh host`. DESTDIR stages it elsewhere (packaging, tests).
set -eu

case "${1:-all}" in
  all) lock=run; units="collector timing sink diagnose mitigate" ;;
  collector) lock=collector; units="collector timing" ;;
  *) echo "usage: deploy/install.sh [collector]" >&2; exit 2 ;;
esac

here=$(cd "$(dirname "$0")/.." && pwd)
root="${DESTDIR:-}"
python="${PYTHON:-/usr/bin/python3}"

if [ -z "$root" ] && [ "$(id -u)" != 0 ]; then
  echo "bpfleet: installing writes to /opt and /etc; run as root, or set DESTDIR" >&2
  exit 1
fi

mkdir -p "$root/opt/bpfleet" "$root/etc/bpfleet" "$root/etc/systemd/system" "$root/var/lib/bpfleet"

"$python" -m venv "$root/opt/bpfleet/venv"
"$root/opt/bpfleet/venv/bin/pip" install -q --disable-pip-version-check --require-hashes -r "$here/requirements/$lock.lock"
# The stages find their neighbours (bpf/, schemas/*.avsc) beside them: the tree is installed as it is.
for part in schemas collector sinks fleet dashboards bpf pyproject.toml README.md; do
  rm -rf "$root/opt/bpfleet/$part"
  cp -r "$here/$part" "$root/opt/bpfleet/$part"
done
"$root/opt/bpfleet/venv/bin/pip" install -q --disable-pip-version-check --no-deps --no-build-isolation -e "$root/opt/bpfleet"

[ -e "$root/etc/bpfleet/bpfleet.yaml" ] || cp "$here/deploy/bpfleet.yaml" "$root/etc/bpfleet/bpfleet.yaml"
for unit in $units; do
  cp "$here/deploy/bpfleet-$unit.service" "$root/etc/systemd/system/"
done

if [ -z "$root" ]; then
  ln -sf /opt/bpfleet/venv/bin/bpfleet /usr/local/bin/bpfleet
  id bpfleet >/dev/null 2>&1 || useradd --system --home-dir /var/lib/bpfleet --shell /usr/sbin/nologin bpfleet
  if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
  fi
  echo "installed; edit /etc/bpfleet/bpfleet.yaml, then: systemctl enable --now bpfleet-collector bpfleet-timing"
  [ "$lock" = collector ] || echo "(bpfleet-sink where ClickHouse is fed; bpfleet-diagnose and bpfleet-mitigate once for a fleet)"
fi
