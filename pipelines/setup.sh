#!/usr/bin/env bash
# Finds or assembles the libtorch that the workspace builds against, and leaves the link `.libtorch` to it.
#
#   bash pipelines/setup.sh
#
# In this order: the libtorch named by LIBTORCH; the PyTorch asked for with LIBTORCH_USE_PYTORCH=1; what an earlier run
# linked; a PyTorch of the right version in python3; else a CPU libtorch made from three Python wheels (540 MB to
# download, 450 MB on disk) in ${CAB_CACHE_DIR:-${XDG_CACHE_HOME:-~/.cache}/cab}. A second run does nothing.
set -euo pipefail

version=2.13.0 # what the tch crate in Cargo.lock expects
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
link=$root/.libtorch
cache=${CAB_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/cab}
target=$cache/libtorch-$version-cpu

say() { echo "setup: $*" >&2; }
die() {
    echo "setup: error: $*" >&2
    exit 1
}

# complete DIR: does DIR hold a libtorch that the workspace can link?
complete() {
    [ -e "$1/lib/libtorch.so" ] && [ -e "$1/lib/libtorch_cpu.so" ] && [ -e "$1/lib/libc10.so" ] &&
        [ -e "$1/include/torch/csrc/autograd/custom_function.h" ]
}

# use DIR WHY: links DIR and ends the script.
use() {
    if [ "$(readlink "$link" 2>/dev/null || true)" = "$1" ]; then
        say "libtorch: $1 ($2)"
        exit 0
    fi
    local aside="$link.$$"
    ln -s "$1" "$aside"
    mv -T "$aside" "$link" # a rename, so that a second run at the same time never sees a half-made link
    say "libtorch: $1 ($2), linked as .libtorch"
    exit 0
}

pytorch_dir() { # prints the directory of python3's PyTorch if its version is $version
    python3 - "$version" 2>/dev/null <<'PY'
import importlib.util, pathlib, sys
spec = importlib.util.find_spec("torch")
folder = pathlib.Path(spec.origin).parent
found = {}
exec((folder / "version.py").read_text(), found)  # cheaper than importing all of torch
assert found["__version__"].split("+")[0] == sys.argv[1]
print(folder)
PY
}

for tool in cargo c++; do
    command -v "$tool" >/dev/null || die "$tool is not installed: the build needs Rust (rustup.rs) and a C++20 compiler (Debian: apt-get install g++)"
done

if [ -n "${LIBTORCH:-}" ] && [ "$LIBTORCH" != ".libtorch" ] && [ "$LIBTORCH" != "$link" ]; then
    complete "$LIBTORCH" || die "LIBTORCH=$LIBTORCH holds no complete libtorch (lib/libtorch.so, lib/libtorch_cpu.so, lib/libc10.so, include/torch): correct or unset it"
    found=$(cut -d+ -f1 "$LIBTORCH/build-version" 2>/dev/null || true)
    if [ -n "$found" ] && [ "$found" != "$version" ] && [ -z "${LIBTORCH_BYPASS_VERSION_CHECK:-}" ]; then
        die "LIBTORCH=$LIBTORCH is version $found, the build needs $version: unset LIBTORCH to get that one, or set LIBTORCH_BYPASS_VERSION_CHECK=1"
    fi
    use "$(cd "$LIBTORCH" && pwd)" "from LIBTORCH"
fi

if [ -n "${LIBTORCH_USE_PYTORCH:-}" ]; then
    folder=$(python3 -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parent)' 2>/dev/null) ||
        die "LIBTORCH_USE_PYTORCH is set, but python3 cannot import torch: activate the environment that has PyTorch $version, or unset it"
    use "$folder" "from LIBTORCH_USE_PYTORCH"
fi

if [ -L "$link" ] && complete "$link"; then
    use "$(readlink "$link")" "linked before"
fi

if folder=$(pytorch_dir) && complete "$folder"; then
    use "$folder" "PyTorch of python3"
fi

[ "$(uname -sm)" = "Linux x86_64" ] ||
    die "no ready libtorch for $(uname -sm) here: install PyTorch $version (pip install torch==$version) and run this again"

# One wheel a line: size in bytes, SHA-256, file name, the arguments pip finds it with.
wheels() {
    cat <<'LIST'
526574961 60fcdcb2f3876e21146cb4524ef06397d727ca9ad5f020818547e25075fe3cb7 torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl torch==2.13.0 --python-version 3.11 --implementation cp --abi cp311 --platform manylinux_2_28_x86_64
10715597 4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8 nvidia_cuda_cupti-13.0.85-py3-none-manylinux_2_25_x86_64.whl nvidia-cuda-cupti==13.0.85 --python-version 3.11 --platform manylinux_2_25_x86_64
2243632 7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548 nvidia_cuda_runtime-13.0.96-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl nvidia-cuda-runtime==13.0.96 --python-version 3.11 --platform manylinux_2_17_x86_64
LIST
}

mkdir -p "$cache"
exec 9>"$cache/libtorch.lock"
if ! flock -n 9; then
    say "another run is assembling libtorch; waiting for it"
    flock 9
fi
if complete "$target"; then
    use "$target" "assembled before"
fi

python3 -m pip --version >/dev/null 2>&1 || die "python3 with pip is needed to fetch libtorch (Debian: apt-get install python3-pip)"
room=$(df -Pk "$cache" | awk 'NR == 2 { print int($4 / 1024) }')
[ "$room" -ge 1200 ] || die "$cache has $room MB free; 1200 MB are needed: free some, or set CAB_CACHE_DIR to another disk"

aside=$(mktemp -d "$cache/libtorch.XXXXXX")
trap 'rm -rf "$aside"' EXIT
while read -r bytes sha256 file arguments; do
    say "fetching $file ($((bytes / 1000000)) MB)"
    # shellcheck disable=SC2086 # the arguments are words
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: -d "$aside/wheels" $arguments 2>"$aside/pip.log" </dev/null ||
        {
            tail -n 3 "$aside/pip.log" >&2
            die "pip could not fetch $file: is this machine offline? Connect it, or set LIBTORCH to a libtorch $version that is already here"
        }
    [ "$(stat -c %s "$aside/wheels/$file" 2>/dev/null)" = "$bytes" ] || die "$file has not the expected size of $bytes bytes: run this again; if it stays, the package index serves another file"
    echo "$sha256  $aside/wheels/$file" | sha256sum --check --status || die "$file has not the expected SHA-256 $sha256: run this again; if it stays, do not trust the package index in use"
done < <(wheels)

python3 - "$aside" <<'PY'
import glob, pathlib, shutil, sys, zipfile

aside = pathlib.Path(sys.argv[1])
lib = aside / "libtorch/lib"
lib.mkdir(parents=True)
shared = {"libtorch_cpu.so", "libc10.so", "libgomp.so.1", "libcupti.so.13", "libcudart.so.13"}
for wheel in sorted(glob.glob(f"{aside}/wheels/*.whl")):
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            path = pathlib.PurePosixPath(name)
            if path.name in shared and path.parent.name == "lib":
                out = lib / path.name
                shared.discard(path.name)
            elif name.startswith("torch/include/") and not name.endswith("/"):
                out = aside / "libtorch" / path.relative_to("torch")
                out.parent.mkdir(parents=True, exist_ok=True)
            else:
                continue
            with archive.open(name) as source, open(out, "wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
assert not shared, f"not in the wheels: {shared}"
PY
ln -s libgomp.so.1 "$aside/libtorch/lib/libgomp.so"
# torch-sys links -ltorch, which in the wheel drags in CUDA; a linker script stands for it.
echo 'INPUT(-ltorch_cpu)' >"$aside/libtorch/lib/libtorch.so"
echo "$version" >"$aside/libtorch/build-version"
sync -f "$aside"
rm -rf "$target"
mv "$aside/libtorch" "$target"
rm -rf "$aside"
use "$target" "CPU, assembled from wheels"
