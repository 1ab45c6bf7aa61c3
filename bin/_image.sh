#!/usr/bin/env bash
# Fills a container image. Dockerfile and Singularity.def both call this file, so that what they make is the same.
# Run as root on Debian, in a folder that holds constraints.txt, pyproject.toml and, for `app`, the package.
# usage: _image.sh check | system | requirements | app | clean     (one step after the other)
# reads: VARIANT (cpu or cuda), TORCH_CPU_INDEX (index of CPU builds of torch; empty: pip's own), PREFETCH (0 or 1)
set -euo pipefail
home=/opt/bids-mllm
packages=$home/lib/python3.11/site-packages
export DEBIAN_FRONTEND=noninteractive PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_NO_CACHE_DIR=1
# In the environment, so that it also holds for what pip installs to build a wheel. It must be an absolute path.
export PIP_CONSTRAINT=$PWD/constraints.txt

fail() {
    echo "The image of bids-mllm cannot be built: $1" >&2
    exit 1
}

check() {
    case ${VARIANT:=cpu} in
        cpu | cuda) ;;
        *) fail "VARIANT is '$VARIANT', which is neither cpu nor cuda; pass one of these two." ;;
    esac
    case ${PREFETCH:=0} in
        0 | 1) ;;
        *) fail "PREFETCH is '$PREFETCH', which is neither 0 nor 1; pass 1 to put the templates into the image." ;;
    esac
}

# What the app needs at run time besides its virtual environment. No compiler is among it.
system() {
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends python3 ca-certificates "$@" >/dev/null
    empty_apt
}

empty_apt() {
    rm -rf /var/lib/apt/lists/* /var/cache/apt/*
}

# The pinned requirements, in a layer of their own: it stays while only the package changes.
requirements() {
    check
    system python3-venv
    python3 -m venv "$home"
    local index=()
    if [ "$VARIANT" = cpu ] && [ -n "${TORCH_CPU_INDEX:-}" ]; then index=(--index-url "$TORCH_CPU_INDEX"); fi
    # torch first, alone: PyPI's build for Linux holds 3 GB of CUDA libraries.
    pip_install --no-deps "${index[@]}" torch
    local wanted
    wanted=$("$home/bin/python" - <<'PY'
import tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
print("\n".join([*project["dependencies"], *project["optional-dependencies"]["atlases"]]))
PY
    )
    pip_install --requirement <(echo "$wanted")
    "$home/bin/python" - "$VARIANT" <<'PY' || fail "torch is not the $VARIANT build; check TORCH_CPU_INDEX."
import sys

from torch.version import cuda

sys.exit((cuda is None) != (sys.argv[1] == "cpu"))
PY
}

pip_install() {
    "$home/bin/python" -m pip install --quiet --no-compile --use-pep517 "$@"
}

app() {
    check
    pip_install --no-deps .
    prune
    # Nobody can write byte code next to the modules later. It is taken without a look at the source's date, which an
    # image may lose. One file of torch's tests is for newer Pythons only.
    "$home/bin/python" -m compileall -q -j 0 -x '/torch/testing/.*/py312_' --invalidation-mode unchecked-hash "$home/lib"
    mkdir -p /opt/templateflow /opt/huggingface
    export TEMPLATEFLOW_HOME=/opt/templateflow TEMPLATEFLOW_AUTOUPDATE=0
    # TemplateFlow fills an empty home with a skeleton when it is imported, which it could not do later.
    "$home/bin/python" -W ignore -c 'import templateflow'
    if [ "$PREFETCH" = 1 ]; then "$home/bin/python" -m bids_mllm.cli.templates prefetch --to /opt/templateflow; fi
    chmod -R a+rX "$home" /opt/templateflow /opt/huggingface
}

# What is never used at run time: 0.5 GB.
prune() {
    # pymoten reads films with OpenCV, bids-mllm reads them with PyAV and never asks pymoten to.
    "$home/bin/python" -m pip uninstall --quiet --yes opencv-python
    # torch's own test programs, its headers (there is no compiler to read them) and the tests of the largest packages.
    rm -rf "$packages"/torch/{test,include} "$packages"/torch/bin/{test_*,*Test,protoc*,*.ptl,*.pt,upgrader_models}
    rm -f "$packages"/torch/lib/{libtorchbind_test,libjitbackend_test,libbackend_with_compiler,libaoti_custom_ops}.so
    local name
    for name in matplotlib networkx numba numpy pandas prov scipy sklearn sympy; do
        find "$packages/$name" -type d -name tests -prune -exec rm -rf {} +
    done
}

# What only the build needs, where build and result are one file system.
clean() {
    apt-get purge -y -qq --auto-remove python3-venv >/dev/null
    empty_apt
}

[ $# -eq 1 ] || fail "_image.sh takes one step, but was given $#."
case $1 in
    check | system | requirements | app | clean) "$1" ;;
    *) fail "'$1' is no step of _image.sh." ;;
esac
