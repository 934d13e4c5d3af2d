"""A simulated accelerator: tensors that compute on the CPU, obey CUDA's rules and count what costs time on a GPU.

    with PretendedDevice() as gpu:
        x = torch.zeros(3, device=gpu.device)   # says `meta`, holds its numbers in host memory
        x + torch.ones(3)                       # Refused: CUDA wants both on one device
        x.numpy()                               # Refused
        float(x.sum())                          # counted as a wait

`meta` is the one device type that autograd serves in Python without a driver. Product code asks only whether a device
is the CPU, so `meta` takes the branches of CUDA. Stricter than CUDA in one place: an index on the host into a tensor
of the device, which CUDA copies in silence, is refused.

It shows where tensors are and what the host does. It shows nothing of streams, kernels, races or precision.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_TYPE = "meta"
_TRANSFER = "model/transfer.py"
_PATH_PARTS = ("/cluster/", "/model/", "/retrieval/", "/tests/")

_WITHOUT_KERNEL = {
    *(
        "_local_scalar_dense",
        "_reshape_alias",
        "_unsafe_view",
        "alias",
        "as_strided",
        "chunk",
        "detach",
        "diagonal",
    ),
    *(
        "empty",
        "empty_like",
        "empty_strided",
        "expand",
        "is_same_size",
        "lift",
        "lift_fresh",
        "narrow",
        "new_empty",
    ),
    *(
        "new_empty_strided",
        "permute",
        "select",
        "slice",
        "split",
        "split_with_sizes",
        "squeeze",
        "t",
        "transpose",
    ),
    *("unbind", "unflatten", "unfold", "unsqueeze", "view"),
}
_READS_A_NUMBER = {"_local_scalar_dense", "equal", "is_nonzero"}
_SIZE_UNKNOWN = {"nonzero", "masked_select", "_unique", "_unique2", "unique_dim", "unique_consecutive"}
_INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
_CHANGES_SHAPE = {"resize_", "set_", "t_", "transpose_", "squeeze_", "unsqueeze_", "as_strided_"}


class Refused(RuntimeError):
    """CUDA would not do this."""


@dataclass
class Counts:
    """What the host asked of the device.

    Attributes:
        launches: operations that run at least one kernel.
        copies_to: copies from host memory.
        copies_back: copies to host memory that the code asks for by name (`.cpu()`, `copy_`); each waits as well.
        waits: other places where the host needs a number of the device before it can go on (`item`, `tolist`, `bool`,
            results of unknown size such as an index by a mask).
        places: file, line and kind of all but the launches.
    """

    launches: int = 0
    copies_to: int = 0
    copies_back: int = 0
    waits: int = 0
    places: Counter[str] = field(default_factory=Counter)

    def note(self, kind: str, what: str) -> None:
        """Count one more, where the product called for it."""
        setattr(self, kind, getattr(self, kind) + 1)
        self.places[f"{kind} {what} {_place()}"] += 1

    def figures(self) -> dict[str, int]:
        """The four numbers by name."""
        return {name: getattr(self, name) for name in ("launches", "copies_to", "copies_back", "waits")}


class DeviceTensor(torch.Tensor):
    """A tensor of the pretended device; `host` has its numbers and shares memory as the tensor does."""

    host: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, host: Tensor) -> DeviceTensor:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            host.size(),
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            layout=host.layout,
            device=torch.device(_TYPE),
        )

    def __init__(self, host: Tensor) -> None:
        self.host = host
        if PretendedDevice._entered is not None:
            PretendedDevice._entered.memory.hold(self)

    def __repr__(self) -> str:
        return f"on the device: {self.host!r}"

    @property
    def is_cuda(self) -> bool:
        return True

    @property
    def is_meta(self) -> bool:
        return False

    def numpy(self, *, force: bool = False) -> Any:
        raise Refused(f"numpy() of a tensor on the device at {_place()}; copy it with .cpu() first")

    def __array__(self, *arguments: Any, **options: Any) -> Any:
        raise Refused(f"a NumPy array of a tensor on the device at {_place()}; copy it with .cpu() first")

    def tolist(self) -> Any:
        _counts().note("waits", "tolist")
        return self.host.detach().tolist()

    def __deepcopy__(self, memo: Any) -> DeviceTensor:
        return DeviceTensor(self.host.detach().clone()).requires_grad_(self.requires_grad)  # type: ignore[return-value]

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _run(func, args, dict(kwargs or {}))


def host(x: Any) -> Any:
    """What a test may look at: the numbers, without a copy and without counting. Other values come back as they are."""
    return x.host.detach() if isinstance(x, DeviceTensor) else x


class Memory:
    """Bytes of the storages that tensors of the device keep alive."""

    def __init__(self) -> None:
        self.held = self.peak = 0
        self._tensors: Counter[int] = Counter()
        self._lock = threading.RLock()

    def hold(self, tensor: DeviceTensor) -> None:
        """Until the last tensor of its storage has gone."""
        storage = tensor.host.untyped_storage()
        key, size = storage.data_ptr(), storage.nbytes()
        with self._lock:
            self._tensors[key] += 1
            self.held += size if self._tensors[key] == 1 else 0
            self.peak = max(self.peak, self.held)
        weakref.finalize(tensor, self._release, key, size).atexit = False

    def _release(self, key: int, size: int) -> None:
        with self._lock:
            self._tensors[key] -= 1
            self.held -= size if self._tensors[key] == 0 else 0


class PretendedDevice:
    """Makes the device exist within a `with` statement, in this thread and in threads that are started in it.

    Attributes:
        device: what product code is given.
        counts: since the last `measured` began.
        memory: since it was entered; without what an operation holds while it runs.
    """

    device = torch.device(_TYPE)
    _entered: PretendedDevice | None = None

    def __init__(self) -> None:
        self.counts = Counts()
        self.memory = Memory()

    def __enter__(self) -> PretendedDevice:
        assert PretendedDevice._entered is None, "one device is enough"
        PretendedDevice._entered = self
        self._stack = ExitStack()
        self._stack.enter_context(_supports_foreach())
        self._stack.enter_context(mock.patch.object(threading.Thread, "run", _in_mode(threading.Thread.run)))
        self._stack.enter_context(_Mode())
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        PretendedDevice._entered = None

    @contextmanager
    def measured(self) -> Iterator[Counts]:
        """The counts of what happens within."""
        self.counts = Counts()
        yield self.counts


class _Mode(TorchDispatchMode):
    """Sees what no tensor of the device takes part in: factories with its name, and copies to it."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and importing the compiler takes 7 s

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _run(func, args, dict(kwargs or {}))


def _in_mode(run: Callable[[threading.Thread], None]) -> Callable[[threading.Thread], None]:
    """Modes belong to threads; a device belongs to the process."""

    def run_in_mode(thread: threading.Thread) -> None:
        with _Mode():
            run(thread)

    return run_in_mode


@contextmanager
def _supports_foreach() -> Iterator[None]:
    """torch takes one kernel for many tensors on the devices and types in these lists, CUDA's among them."""
    from torch.optim import optimizer
    from torch.utils import _foreach_utils

    devices = [*_foreach_utils._get_foreach_kernels_supported_devices(), _TYPE]
    with ExitStack() as stack:
        for module in (optimizer, _foreach_utils):
            stack.enter_context(
                mock.patch.object(module, "_get_foreach_kernels_supported_devices", return_value=devices)
            )
            kinds = [*module._foreach_supported_types, DeviceTensor]
            stack.enter_context(mock.patch.object(module, "_foreach_supported_types", kinds))
        yield


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    name = func.overloadpacket.__name__
    tensors = _tensors_in((args, kwargs))
    wanted = kwargs.get("device")
    if kwargs.get("pin_memory") and not _is_device(wanted):
        kwargs["pin_memory"] = False  # memory of the host, which only a driver can pin
    if not any(isinstance(t, DeviceTensor) for t in tensors) and not _is_device(wanted):
        return func(*args, **kwargs)
    if name == "_to_copy":
        return _copied(func, args, kwargs)
    if name == "copy_":
        return _copied_into(args[0], args[1])
    if name in _CHANGES_SHAPE:
        raise Refused(f"{func} changes a tensor's shape in place, which the pretended device cannot follow")
    _count(name, args)
    if func.namespace != "c10d":
        _refuse_mixed(func, name, args, tensors)
    host_args, host_kwargs = _mapped(_unwrapped, args), _mapped(_unwrapped, kwargs)
    if "device" in host_kwargs:
        host_kwargs["device"] = torch.device("cpu")
    return _wrapped(func(*host_args, **host_kwargs), func, tensors)


def _copied(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    source = args[0]
    target = kwargs["device"] if kwargs.get("device") is not None else source.device
    options = {k: v for k, v in kwargs.items() if k not in ("device", "non_blocking", "pin_memory")}
    out = func(_unwrapped(source), *args[1:], **options)
    if isinstance(source, DeviceTensor) and not _is_device(target):
        _counts().note("copies_back", "to")
        return out
    if isinstance(source, DeviceTensor):
        _counts().launches += 1
    else:
        _counts().note("copies_to", "to")
    return DeviceTensor(out)


def _copied_into(target: Tensor, source: Tensor) -> Tensor:
    if isinstance(target, DeviceTensor) and isinstance(source, DeviceTensor):
        _counts().launches += 1
    else:
        _counts().note("copies_to" if isinstance(target, DeviceTensor) else "copies_back", "copy_")
    _unwrapped(target).copy_(_unwrapped(source))
    return target


def _count(name: str, args: tuple[Any, ...]) -> None:
    counts = _counts()
    if name in _READS_A_NUMBER | _SIZE_UNKNOWN:
        counts.note("waits", name)
    elif name in _INDEXED and any(_is_mask(index) for index in args[1]):
        counts.note("waits", "index by a mask")
    if name not in _WITHOUT_KERNEL:
        counts.launches += 1


def _refuse_mixed(func: Any, name: str, args: tuple[Any, ...], tensors: list[Tensor]) -> None:
    """CUDA takes a scalar of the host beside its own tensors in elementwise operations, and nothing else."""
    strangers = [t for t in tensors if not isinstance(t, DeviceTensor)]
    scalars_allowed = torch.Tag.pointwise in func.tags or name in _INDEXED or name.startswith("masked_fill")
    if not strangers or (scalars_allowed and all(t.dim() == 0 for t in strangers)):
        return
    if name.startswith("_foreach") and all(t.dim() == 0 for t in strangers):
        return
    where = [
        ("device " if isinstance(t, DeviceTensor) else f"{t.device} ") + str(tuple(t.shape)) for t in tensors
    ]
    raise Refused(
        f"{func} at {_place()}: expected all tensors to be on the same device, found {', '.join(where)}"
    )


def _wrapped(result: Any, func: Any, given: list[Tensor]) -> Any:
    """New tensors are the device's; what an in-place operation was given comes back as the object that it was."""
    in_place = func._schema.is_mutable or func.namespace == "c10d"
    same = {id(_unwrapped(x)): x for x in given} if in_place else {}
    return _mapped(lambda x: same[id(x)] if id(x) in same else DeviceTensor(x), result)


def _mapped(change: Callable[[Any], Any], value: Any) -> Any:
    """The same with every tensor in it changed; operations take and give tensors, lists, tuples and mappings."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, list | tuple):
        return type(value)(_mapped(change, part) for part in value)
    return {k: _mapped(change, v) for k, v in value.items()} if isinstance(value, dict) else value


def _tensors_in(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for part in parts for tensor in _tensors_in(part)]


def _unwrapped(x: Any) -> Any:
    return x.host if isinstance(x, DeviceTensor) else x


def _is_device(device: Any) -> bool:
    return device is not None and torch.device(device).type == _TYPE


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)


def _counts() -> Counts:
    assert PretendedDevice._entered is not None, "a tensor of the pretended device outlived it"
    return PretendedDevice._entered.counts


def _place() -> str:
    """The innermost line of this repository that is not this file."""
    frame = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if (
            not path.endswith(_TRANSFER)
            and path != __file__
            and "site-packages" not in path
            and any(part in path for part in _PATH_PARTS)
        ):
            return f"{'/'.join(path.split('/')[-3:])}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"
