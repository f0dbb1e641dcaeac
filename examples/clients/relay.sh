#!/bin/sh
# Lists processes, follows the output of one and signals it, with curl. docs/http.md describes the routes.
#
#   relay.sh list
#   relay.sh follow NAME [CURSOR]     JSON lines, from a cursor on; continues after a broken connection
#   relay.sh download NAME STREAM FILE
#   relay.sh signal NAME SIGNAL
#
# RELAY       host:port of the relay; default: localhost:8443, as with kubectl port-forward
# RELAY_NAME  the relay's name, which `rproc login` prints; default: operator.remoteprocess.local
# CERTS       directory that `rproc login --output-dir` wrote; default: ~/.rproc
# NAMESPACE   default: default
set -eu

name=${RELAY_NAME:-operator.remoteprocess.local}
certs=${CERTS:-$HOME/.rproc}
processes=https://$name/v1/namespaces/${NAMESPACE:-default}/processes

fetch() {
    curl --silent --show-error --connect-to "$name:443:${RELAY:-localhost:8443}" \
        --cert "$certs/tls.crt" --key "$certs/tls.key" --cacert "$certs/ca.crt" "$@"
}

relay() {
    fetch --fail-with-body "$@"
}

# Prints records until the last one. A connection that ends without it is continued behind the last whole record.
follow() {
    cursor=${2:-}
    lines=$(mktemp)
    trap 'rm -f "$lines"' EXIT
    while true; do
        relay --no-buffer --header 'Accept: application/x-ndjson' \
            "$processes/$1/output?follow=true${cursor:+&offset=$cursor}" | tee "$lines" || true
        case $(tail -n 1 "$lines") in
            '{"type":"end"'*) return 0 ;;
            '{"type":"error"'*'"code":"Unavailable"'*) ;;
            '{"type":"error"'* | '{"type":"tag:'*) return 1 ;;
        esac
        last=$(sed -n 's/.*"cursor":"\([^"]*\)"}$/\1/p' "$lines" | tail -n 1)
        cursor=${last:-$cursor}
        sleep 1
    done
}

# Downloads complete output, resumes, and compares its SHA-256 with the ETag.
download() {
    url="$processes/$1/output?stream=$2"
    while true; do
        code=0
        fetch --fail --continue-at - --output "$3" "$url" || code=$?
        case $code in
            # 22: nothing is left to download, or the relay refuses it. The hash tells.
            0 | 22) break ;;
        esac
        sleep 1
    done
    tag=$(relay --head "$url" | tr -d '\r"' | sed -n 's/^[Ee][Tt]ag: //p')
    printf '%s  %s\n' "$tag" "$3" | sha256sum --check --quiet
}

case ${1:-} in
    list) relay "$processes" ;;
    follow) follow "$2" "${3:-}" ;;
    download) download "$2" "$3" "$4" ;;
    signal) relay --json "{\"signal\": \"$3\"}" "$processes/$2/signal" ;;
    *) sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
