#!/bin/sh
# What the distribution must provide, on Debian 12 or Ubuntu 24.04; idempotent, quick when all is there.
#   deploy/setup.sh host      a collector: bcc for the compiling child, libpcap for rules of the filter
#   deploy/setup.sh run       + a Java runtime and Maven, for the embedded Kafka
#   deploy/setup.sh test      + the peers and judges that tests and benchmarks compare with
set -eu

host="python3 python3-venv python3-bpfcc libpcap0.8"
run="$host maven"
java="openjdk-17-jre-headless"
test="$run iproute2 iputils-ping ethtool kmod util-linux gcc make libc6-dev curl libbpf-tools xdp-tools linux-perf"

say() { printf '\033[1m▸ %s\033[0m\n' "$*"; }

case "${1:-run}" in
  host) wanted="$host" ;;
  run) wanted="$run" ;;
  test) wanted="$test" ;;
  *) echo "usage: deploy/setup.sh host|run|test" >&2; exit 2 ;;
esac
# Any Java of 17 or newer will do; Maven alone may bring it.
if [ "$1" != host ] && ! command -v java >/dev/null 2>&1; then wanted="$wanted $java"; fi
# The pictures of dashboards are looked at in any Chromium.
if [ "$1" = test ] && ! command -v chromium >/dev/null 2>&1 && ! command -v google-chrome >/dev/null 2>&1; then
  wanted="$wanted chromium"
fi
command -v go >/dev/null 2>&1 || [ "$1" != test ] || wanted="$wanted golang-go"
# linux-perf is called linux-tools-generic on Ubuntu.
if ! grep -qi '^ID=debian' /etc/os-release; then
  wanted=$(printf %s "$wanted" | sed 's/linux-perf/linux-tools-generic/')
fi

missing=""
for package in $wanted; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
done
# A virtual package (libpcap0.8 on Ubuntu) never shows as installed itself.
[ "$missing" = " libpcap0.8" ] && ldconfig -p | grep -q 'libpcap\.so' && missing=""
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ]; then
  echo "bpfleet: these packages are missing:$missing; run as root: apt-get install$missing" >&2
  exit 1
fi
if ! command -v apt-get >/dev/null 2>&1; then
  echo "bpfleet: set-up knows apt only; install the equivalents of:$missing" >&2
  exit 1
fi
say "installing from the distribution:$missing"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# shellcheck disable=SC2086
apt-get install -y -qq --no-install-recommends $missing >/dev/null
