#!/bin/sh
# Fetches what a GPU machine without a network lacks, for x86-64 and Python 3.12, into .whl/ (36 MB; git ignores it).
# Run in the repository's root where pip has a registry. Pass the versions of constraints.txt along when they change.
set -eu
fetch() {
  python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_17_x86_64 \
    --platform manylinux2014_x86_64 --platform manylinux1_x86_64 -d "$@"
}
rm -rf .whl .whl-large
fetch .whl kafka-python==3.0.12 orjson==3.13.0 lz4==4.4.5 crc32c==2.9.post0
fetch .whl-large faiss-gpu==1.15.1 nvidia-cuda-runtime-cu12==12.9.79
python3 tests/gpu/small_faiss.py .whl-large/faiss_gpu-*.whl .whl-large/nvidia_cuda_runtime_cu12-*.whl .whl
ls -l .whl
