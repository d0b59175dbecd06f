# Sourced by the scripts of train/, eval/ and cache/: goes to the repository root, and checks paths
# from the environment before anything is started. A path given as a flag needs no variable, and with
# --dry_run nothing has to exist.

arguments=("$@")
# What the user calls relative is relative to where the user is.
for name in CACHED_PATH CKPT IMAGENET_PATH ORDERS OUTPUT PRETRAINED REFERENCE VQGAN; do
    value=${!name:-}
    [[ -z $value || $value == /* ]] || printf -v "$name" '%s' "$PWD/$value"
done
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# given FLAG: whether --FLAG is among the arguments, with underscores or hyphens.
given() {
    local argument
    for argument in "${arguments[@]}"; do
        argument=${argument//-/_}
        [[ $argument != "__$1" && $argument != "__$1="* ]] || return 0
    done
    return 1
}

# need VALUE NAME FLAG REMEDY: the path VALUE of the variable NAME must exist, unless FLAG is given.
need() {
    if given dry_run || given "$3"; then
        [ -n "$1" ] || printf -v "$2" '%s' "$2"
    elif [ ! -e "$1" ]; then
        echo "$(basename "$0"): error: ${1:+no $1; }set $2 or --$3 to where it is: $4" >&2
        exit 2
    fi
}

# orders DEFAULT: evaluate with pre-generated orders: those of ORDERS, or DEFAULT.npz or DEFAULT.json
# if it is there.
orders() {
    local suffix
    order_flags=()
    if [ -n "${ORDERS:-}" ]; then
        need "$ORDERS" ORDERS lpd_order_file "make it with orders/run_lpd_order.py"
        order_flags=(--lpd_order_file "$ORDERS")
    else
        for suffix in json npz; do
            [ ! -e "$1.$suffix" ] || order_flags=(--lpd_order_file "$1.$suffix")
        done
    fi
}
