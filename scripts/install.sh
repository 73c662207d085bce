#!/bin/sh
# Makes a virtual environment and installs Storyloom into it: scripts/install.sh FOLDER EXTRA
set -eu
venv=$1
extra=$2
python=${PYTHON:-python3}
torch="torch>=2.11,<2.14"

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "Storyloom needs Python 3.11 or newer; $python is $("$python" -V 2>&1). Set PYTHON to another one." >&2
    exit 1
}
[ -x "$venv/bin/python" ] || {
    echo "making the environment in $venv"
    "$python" -m venv "$venv"
}
# Without an NVIDIA GPU the CPU build saves gigabytes. Where its index can't be reached, the usual index serves.
if ! command -v nvidia-smi >/dev/null 2>&1 && ! "$venv/bin/python" -c 'import torch' 2>/dev/null; then
    "$venv/bin/pip" install --quiet --disable-pip-version-check --retries 0 --timeout 15 \
        --index-url https://download.pytorch.org/whl/cpu "$torch" 2>/dev/null ||
        "$venv/bin/pip" install --quiet --disable-pip-version-check "$torch"
fi
echo "installing storyloom[$extra]; the first time takes a minute or two"
"$venv/bin/pip" install --quiet --disable-pip-version-check --editable ".[$extra]"
touch "$venv/.$extra"
