# Sourced by bin/demo and bin/test: makes .venv with the pinned install, once, and again when the pins change.
# usage: make_venv [EXTRA]   (run in the repository's root; sets $venv)
make_venv() {
    extra=${1:-}
    venv=${BIDS_MLLM_VENV:-.venv}
    stamp="$venv/.installed${extra:+-$extra}"
    wanted=$(cat pyproject.toml constraints.txt | sha256sum | cut -d' ' -f1)
    # What the tests need holds what the app needs.
    if [ -z "$extra" ] && [ "$(cat "$stamp-test" 2>/dev/null)" = "$wanted" ]; then return; fi
    if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ]; then
        python=${PYTHON:-python3}
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
            echo "bids-mllm needs Python 3.11 or newer, but $python is $("$python" --version 2>&1); set PYTHON=/path/to/python3.11." >&2
            exit 1
        }
        if [ ! -x "$venv/bin/python" ]; then
            "$python" -m venv "$venv" 2>/dev/null || install_debian_venv "$python" "$venv"
        fi
        echo "Installing bids-mllm and its pinned requirements into $venv ..." >&2
        # torch first, alone: where a CPU build is on offer pip takes it instead of one with CUDA libraries.
        "$venv/bin/python" -m pip install -qq --constraint constraints.txt torch
        "$venv/bin/python" -m pip install -qq --constraint constraints.txt --editable ".${extra:+[$extra]}"
        echo "$wanted" > "$stamp"
    fi
}

# Debian's python3 comes without ensurepip until python3-venv is installed.
install_debian_venv() {
    rm -rf "$2"
    if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
        apt-get update -qq && apt-get install -y -qq --no-install-recommends python3-venv >/dev/null
    fi
    "$1" -m venv "$2"
}
