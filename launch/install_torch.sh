#!/usr/bin/env bash
# Install the build of torch for this machine, in the version of constraints.txt. Run it before gpt2lab is installed.
#
#   launch/install_torch.sh [PYTHON]      PYTHON: interpreter of the environment (default: .venv/bin/python)
#
#   no NVIDIA driver, Linux                                           the CPU build, unless torch is installed
#   driver 525 to 579, or a GPU of compute capability below 7.5       built for CUDA 12.6
#   otherwise                                                         nothing: the default build follows with gpt2lab
#
# GPUs of compute capability 10 or above need driver 580.
set -euo pipefail
# shellcheck source=/dev/null
. "$(dirname "$0")/common.sh"
show_help_if_asked "$@"

constraints="$(dirname "$0")/../constraints.txt"
python="${1:-.venv/bin/python}"
version="$(sed -n 's/^torch==//p' "$constraints")"

# Prints a property of the first GPU; nothing if there is no driver.
ask() {
    nvidia-smi --query-gpu="$1" --format=csv,noheader 2>/dev/null | grep -m 1 -E '^[0-9]+\.[0-9.]+$' || true
}

refuse() {
    echo "NVIDIA driver $driver is too old for this GPU (compute capability $capability): install driver $1 or newer" >&2
    exit 1
}

# PyTorch's index has torch; PyPI has its dependencies in the versions of constraints.txt.
install() {
    "$python" -m pip --disable-pip-version-check install --quiet "${@:2}" -c "$constraints" "torch==$version+$1" \
        --extra-index-url "https://download.pytorch.org/whl/$1"
}

driver="$(ask driver_version)"
capability="$(ask compute_cap)"
generation="${capability//./}" # 8.0 is 80
generation="${generation:-80}"
if [ -z "$driver" ]; then
    installed="$("$python" -c 'import torch; print(torch.__version__)' 2>/dev/null || true)"
    if [ "$(uname)" = Linux ] && [ "${installed%%+*}" != "$version" ]; then
        install cpu --retries 1 --timeout 15 || echo "no CPU build of torch: the default build will be installed"
    fi
elif [ "${driver%%.*}" -lt 525 ]; then
    refuse 525
elif [ "${driver%%.*}" -lt 580 ] && [ "$generation" -ge 100 ]; then
    refuse 580
elif [ "${driver%%.*}" -lt 580 ] || [ "$generation" -lt 75 ]; then
    install cu126
fi
