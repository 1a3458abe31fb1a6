# shellcheck shell=bash
# Functions of the scripts in this folder, which read this file with `.`.

fail() {
    printf '%s: %s\n' "$0" "$*" >&2
    exit 2
}

# Prints the comment at the beginning of the script if an argument is -h or --help.
show_help_if_asked() {
    local argument
    for argument in "$@"; do
        case "$argument" in
            -h | --help)
                sed -n -e 1d -e '/^#/!q' -e 's/^# \{0,1\}//p' "$0"
                exit
                ;;
        esac
    done
}

# require_number NAME VALUE
require_number() {
    case "$2" in
        '' | *[!0-9]*) fail "$1 is '$2'; give a whole number" ;;
    esac
}

# require_python PYTHON
require_python() {
    command -v "$1" >/dev/null || fail "PYTHON: $1: no such command; give a Python interpreter with gpt2lab"
}

# require_processes NPROC_PER_NODE PYTHON: the values that torchrun takes.
require_processes() {
    local found
    case "$1" in
        gpu)
            found="$("$2" -c 'import torch; print(torch.cuda.is_available())' 2>&1)" || fail "$2: ${found##*$'\n'}"
            [ "${found##*$'\n'}" != False ] || fail "no GPU that torch can use; NPROC_PER_NODE=1 trains on the CPU"
            ;;
        auto | cpu) ;;
        '' | 0 | *[!0-9]*) fail "NPROC_PER_NODE is '$1'; give a number of processes, or gpu for one per GPU" ;;
    esac
}
