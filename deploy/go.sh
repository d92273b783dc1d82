#!/bin/sh
# Prints the path of a Go that builds tests/clickhouse_go, fetching one where the distribution's is too old.
# Debian 12 has 1.19, which cannot read our go.mod, yet it can fetch a newer toolchain as what it is: a module,
# checked against sum.golang.org.
set -eu

need=1.25.5
known=$(go env GOVERSION 2>/dev/null | sed -n 's/^go1\.\([0-9]*\).*/\1/p')
if [ "${known:-0}" -ge 21 ]; then  # from 1.21 on it fetches what go.mod asks for itself
  command -v go
  exit 0
fi
place="${XDG_CACHE_HOME:-$HOME/.cache}/bpfleet/go$need"
if [ ! -x "$place/bin/go" ]; then
  case "$(uname -m)" in
    x86_64) arch=amd64 ;;
    aarch64) arch=arm64 ;;
    *) echo "bpfleet: no Go $need for $(uname -m); put a Go of 1.21 or newer on the PATH" >&2; exit 1 ;;
  esac
  work=$(mktemp -d)
  trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
  cd "$work"
  printf 'module fetch\n' > go.mod
  GOMODCACHE="$work/mod" go mod download "golang.org/toolchain@v0.0.1-go$need.linux-$arch"
  mkdir -p "$place"
  cp -r "$work/mod/golang.org/toolchain@v0.0.1-go$need.linux-$arch/." "$place"
  chmod -R u+w "$place"
  chmod +x "$place"/bin/* "$place"/pkg/tool/*/*
fi
echo "$place/bin/go"
