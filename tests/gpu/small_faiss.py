"""faiss-gpu's wheel made small enough to carry to a machine without a network: one GPU architecture, CUDA 13's cuBLAS.

    python3 tests/gpu/small_faiss.py faiss_gpu-*.whl nvidia_cuda_runtime_cu12-*.whl OUT_FOLDER

Of the machine code only sm_90 (H100, H200) stays. Faiss calls eight functions of cuBLAS, which CUDA 13's has alike, so
the two library names in the ELF file change and torch's own cuBLAS serves. The CUDA 12 runtime (.7 MB) comes along.
Nobody has run the result on a GPU yet.
"""

from __future__ import annotations

import base64
import hashlib
import struct
import sys
import zipfile
from pathlib import Path

_CONTAINER, _MACHINE_CODE, _ARCHITECTURE = 0xBA55ED50, 2, 90
_RENAMED = {b"libcublas.so.12": b"libcublas.so.13", b"libcublasLt.so.12": b"libcublasLt.so.13"}
_LOADER = '''"""Loads torch's cuBLAS 13 and the CUDA 12 runtime beside this build before Faiss asks for them."""
import ctypes
import pathlib

import nvidia.cu13

_libraries = pathlib.Path(list(nvidia.cu13.__path__)[0]) / "lib"
_own = pathlib.Path(__file__).parent.parent / "faiss_gpu.libs"
for _path in (_own / "libcudart.so.12", _libraries / "libcublasLt.so.13", _libraries / "libcublas.so.13"):
    ctypes.CDLL(str(_path), mode=ctypes.RTLD_GLOBAL)
raise ImportError("nothing more to load")  # faiss tries this module and goes on without it
'''


def main(faiss_wheel: str, runtime_wheel: str, out: str) -> None:
    """Write the small wheel under the name of the large one."""
    with zipfile.ZipFile(faiss_wheel) as large, zipfile.ZipFile(runtime_wheel) as runtime:
        files = {entry.filename: large.read(entry) for entry in large.infolist() if not entry.is_dir()}
        files["faiss_gpu.libs/libcudart.so.12"] = runtime.read("nvidia/cuda_runtime/lib/libcudart.so.12")
    library = bytearray(files["faiss/libfaiss.so"])
    kept, all_bytes = keep_one_architecture(library)
    for old, new in _RENAMED.items():
        rename_library(library, old, new)
    files["faiss/libfaiss.so"] = bytes(library)
    files["faiss/_gpu_build.py"] = _LOADER.encode()
    target = Path(out) / Path(faiss_wheel).name
    target.parent.mkdir(parents=True, exist_ok=True)
    _write_wheel(target, files)
    print(
        f"{target}: {target.stat().st_size >> 20} MiB, {kept >> 20} of {all_bytes >> 20} MiB of machine code"
    )


def keep_one_architecture(library: bytearray) -> tuple[int, int]:
    """Cut every fat binary down to sm_90's code, in place; bytes kept and bytes there were."""
    start, size = sections(library)[".nv_fatbin"]
    at, kept = start, 0
    while at + 16 <= start + size:
        magic, _, header, length = struct.unpack_from("<IHHQ", library, at)
        if magic != _CONTAINER:
            at += 8
            continue
        chosen, entry, end = b"", at + header, at + header + length
        while entry < end:
            kind, _, head, payload = struct.unpack_from("<HHIQ", library, entry)
            (architecture,) = struct.unpack_from("<I", library, entry + 28)
            if (kind, architecture) == (_MACHINE_CODE, _ARCHITECTURE):
                chosen += bytes(library[entry : entry + head + payload])
            entry += head + payload
        if not chosen:
            raise ValueError(f"the fat binary at {at:#x} has no code for sm_{_ARCHITECTURE}")
        library[at + header : end] = chosen.ljust(length, b"\0")
        struct.pack_into("<Q", library, at + 8, len(chosen))
        kept, at = kept + len(chosen), end
    return kept, size


def rename_library(library: bytearray, old: bytes, new: bytes) -> None:
    """Another library of the same length of name, in the string table and in the hashes of its symbol versions."""
    found = sections(library)
    names, size = found[".dynstr"]
    at = library.find(b"\0" + old + b"\0", names, names + size) + 1
    if not at or len(old) != len(new):
        raise ValueError(f"{old!r} is not asked for, or {new!r} has another length")
    library[at : at + len(old)] = new
    need = found[".gnu.version_r"][0]
    while True:
        _, versions, _, first, to_next = struct.unpack_from("<HHIII", library, need)
        version = need + first
        for _ in range(versions):
            _, _, _, name, step = struct.unpack_from("<IHHII", library, version)
            if names + name == at:
                struct.pack_into("<I", library, version, elf_hash(new))
            version += step
        if not to_next:
            return
        need += to_next


def sections(library: bytes | bytearray) -> dict[str, tuple[int, int]]:
    """Offset and size of each section of a 64-bit ELF file, by name."""
    (table,) = struct.unpack_from("<Q", library, 0x28)
    size, count, names_at = struct.unpack_from("<HHH", library, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", library, table + n * size) for n in range(count)]
    names = headers[names_at][4]

    def name_of(offset: int) -> str:
        return bytes(library[names + offset : library.index(b"\0", names + offset)]).decode()

    return {name_of(header[0]): (header[4], header[5]) for header in headers}


def elf_hash(name: bytes) -> int:
    """The System V ABI's hash of a name."""
    value = 0
    for byte in name:
        value = (value << 4) + byte
        high = value & 0xF0000000
        value = (value ^ (high >> 24)) & ~high & 0xFFFFFFFF
    return value


def _write_wheel(target: Path, files: dict[str, bytes]) -> None:
    record = next(name for name in files if name.endswith(".dist-info/RECORD"))
    lines = []
    for name, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        lines.append(f"{name},," if name == record else f"{name},sha256={digest},{len(content)}")
    files[record] = ("\n".join(lines) + "\n").encode()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as wheel:
        for name, content in files.items():
            wheel.writestr(name, content)


if __name__ == "__main__":
    main(*sys.argv[1:])
