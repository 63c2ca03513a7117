#!/bin/sh
# `make demo`: a daemon with the demo model on a private socket, the sample clips through it, its status, and its end.
# Exit status 0 only if the daemon came up, every clip was transcribed, and the daemon ended by itself when asked to.
set -eu

cd "$(dirname "$0")/.."
# Until it listens; svctl transcribe waits for the model by itself.
seconds_to_listen=60
seconds_to_stop=30

folder=$(mktemp -d "${TMPDIR:-/tmp}/sensevoice-demo.XXXXXX")
daemon=
# The path of a Unix socket may have 107 bytes: a deep TMPDIR is left for /tmp.
if [ ${#folder} -gt 90 ]; then
    rmdir "$folder"
    folder=$(mktemp -d /tmp/sensevoice-demo.XXXXXX)
fi
export SENSEVOICE_SOCKET="$folder/api.sock"
# The demo is the same whatever this machine's own daemon is set to.
: > "$folder/empty.toml"

finish() {
    status=$?
    trap - EXIT INT TERM HUP
    if [ -n "$daemon" ]; then
        kill -TERM "$daemon" 2>/dev/null || :
        # Ends with the daemon, or kills it after a while.
        ( i=0
          while [ $i -lt $((seconds_to_stop * 10)) ] && kill -0 "$daemon" 2>/dev/null; do sleep 0.1; i=$((i + 1)); done
          kill -KILL "$daemon" 2>/dev/null || : ) &
        watcher=$!
        ended=0
        wait "$daemon" || ended=$?
        kill "$watcher" 2>/dev/null || :
        wait "$watcher" 2>/dev/null || :
        if [ $ended -ne 0 ]; then
            echo "demo: the daemon ended with status $ended:" >&2
            cat "$folder/log" >&2
            [ $status -ne 0 ] || status=1
        else
            echo "The daemon has ended."
        fi
    fi
    rm -rf "$folder"
    exit $status
}
trap finish EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

echo "Starting sensevoiced with the demo model ..."
sensevoiced --config "$folder/empty.toml" --model demo --socket "$SENSEVOICE_SOCKET" > "$folder/log" 2>&1 &
daemon=$!

# A ping is answered as soon as the daemon listens, before the model is loaded.
tries=0
until svctl ping --quiet 2> "$folder/ping"; do
    if ! kill -0 "$daemon" 2>/dev/null; then
        echo "demo: the daemon did not start." >&2
        exit 1
    fi
    tries=$((tries + 1))
    if [ $tries -ge $((seconds_to_listen * 5)) ]; then
        echo "demo: the daemon did not answer within $seconds_to_listen s: $(cat "$folder/ping")" >&2
        exit 1
    fi
    sleep 0.2
done

set -- sensevoiced/demo/samples/*.wav sensevoiced/demo/samples/*.flac sensevoiced/demo/samples/*.ogg
found=0
for clip in "$@"; do
    [ -f "$clip" ] || continue
    found=$((found + 1))
    echo
    echo "\$ svctl transcribe $clip"
    svctl transcribe "$clip"
done
if [ $found -eq 0 ]; then
    echo "demo: there are no sample clips in sensevoiced/demo/samples." >&2
    exit 1
fi

echo
echo "\$ svctl status"
svctl status
echo
