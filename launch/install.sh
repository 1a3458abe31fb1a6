#!/usr/bin/env bash
# Install gpt2lab into .venv, with the build of torch for this machine (launch/install_torch.sh).
#
#   launch/install.sh
#
# An existing .venv with Python 3.11 or newer and pip is used. Otherwise uv installs Python 3.12 there, with the headers
# that torch.compile needs; the machine needs neither Python nor pip. If everything is installed, nothing is done.
set -euo pipefail
# shellcheck source=/dev/null
. "$(dirname "$0")/common.sh"
show_help_if_asked "$@"
cd "$(dirname "$0")/.."

# A checksum of everything that determines which packages are installed.
checksum() {
    {
        cat constraints.txt pyproject.toml launch/install*.sh
        nvidia-smi --query-gpu=driver_version,compute_cap --format=csv,noheader 2>/dev/null || true
    } | cksum
}

get_uv() {
    if ! command -v curl >/dev/null && ! command -v wget >/dev/null; then
        if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
            echo "install uv (https://docs.astral.sh/uv/) or Python 3.11 or newer with venv, and run this again" >&2
            exit 1
        fi
        apt-get -qq update && apt-get -qq install -y --no-install-recommends curl ca-certificates
    fi
    address=https://astral.sh/uv/install.sh
    { curl -LsSf "$address" || wget -qO- "$address"; } | UV_UNMANAGED_INSTALL="$HOME/.local/bin" sh
}

if [ "$(cat .venv/.installed-all 2>/dev/null)" = "$(checksum)" ] && .venv/bin/python -c 'import torch, gpt2lab'; then
    exit 0
fi
echo "installing gpt2lab into .venv"
if ! .venv/bin/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    PATH="$PATH:$HOME/.local/bin"
    command -v uv >/dev/null || get_uv
    uv venv --quiet --allow-existing --seed --python-preference only-managed --python 3.12 .venv
fi
launch/install_torch.sh .venv/bin/python
.venv/bin/python -m pip --disable-pip-version-check install --quiet -c constraints.txt -e '.[data,app]'
checksum >.venv/.installed-all
