"""A fake CUDA device: traces what a run does on a GPU, without one.

    from speed.fake_cuda.device import FakeCUDA  # before torch is imported
    with FakeCUDA(total_memory=80 * 2**30) as cuda:
        ...  # code that uses "cuda"

Tensors are torch's FakeTensors: they have shapes, dtypes and devices, but no
numbers; a loss is a million. The device records the operations with their
devices and dtypes, when the CPU waits for the device, and how much memory is
held, rounded as torch's allocator does. It does not model kernels, streams,
numbers or speed, and does not track ``torch.tensor(x, device="cuda")``.

torch's autograd needs a device in C++: shim.cpp, compiled here in two seconds
and loaded before torch. Importing this module changes torch for the whole
process, so use a separate process.
"""
import collections
import contextlib
import ctypes
import functools
import importlib.util
import subprocess
import sys
import tempfile
import types
import weakref
from pathlib import Path

NAME = "fake GPU"
SHIM = Path(__file__).with_name("shim.cpp")


def load_shim():
    """Compile shim.cpp and load it after torch's libraries, before torch."""
    if "torch" in sys.modules:
        raise ImportError(
            "speed.fake_cuda.device must be imported before torch."
        )
    torch_folder = Path(importlib.util.find_spec("torch").origin).parent
    for name in ("libc10.so", "libtorch_cpu.so"):
        ctypes.CDLL(str(torch_folder / "lib" / name), ctypes.RTLD_GLOBAL)
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "shim.so")
        subprocess.run(
            [
                "g++", "-O0", "-std=c++20", "-shared", "-fPIC",
                f"-I{torch_folder}/include", SHIM, "-o", library,
                f"-L{torch_folder}/lib", "-lc10", "-ltorch_cpu",
            ],
            check=True,
        )
        return ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)


shim = load_shim()

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch._subclasses.fake_tensor import (  # noqa: E402
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.optim import optimizer as optimizer_module  # noqa: E402
from torch.utils import _foreach_utils  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

# Matrix products, and the index of the argument that has their dtype.
PRODUCTS = {
    "mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1,
    "_scaled_dot_product_flash_attention": 0,
}
GENERATOR_STATE = torch.zeros(16, dtype=torch.uint8)
# torch's allocator rounds up to multiples of this number of bytes.
BLOCK = 512


class FakeCUDA(TorchDispatchMode):
    """Context with a CUDA device, in which all tensors are fake.

    Parameters
    ----------
    total_memory : int
        Bytes of each device. Exceeding it raises no error.
    num_devices : int
        Visible devices, at most eight.

    Attributes
    ----------
    where : str
        Label of what is counted from now on; set it at any time.
    waits : dict of str to int
        Number of times that the CPU waited for the device, by label: to read
        a number or tensor, or to copy a tensor from memory that is not pinned.
    product_dtypes : dict of str to set of torch.dtype
        Dtypes of the matrix products, by label.
    queued : int
        Operations since the last wait for the device.
    allocated, peak : int
        Bytes held by tensors on all devices, now and at most.
    devices : set of torch.device
        Devices that have held tensors.
    """

    @classmethod
    def is_infra_mode(cls):
        """torch.compile may look past this mode."""
        return True

    def __init__(self, total_memory=80 * 2**30, num_devices=1):
        super().__init__()
        self.total_memory, self.num_devices = total_memory, num_devices
        self.devices = set()
        self.where = ""
        self.waits = collections.Counter()
        self.product_dtypes = collections.defaultdict(set)
        self.queued = self.allocated = self.peak = 0
        self._storages = {}
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._context = contextlib.ExitStack()

    def __enter__(self):
        self.set_device(0)
        self._context.enter_context(self._torch_replaced())
        self._context.enter_context(self._fake)
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._context.close()

    def synchronize(self, device=None):
        self.queued = 0

    def reset_peak(self, device=None):
        self.peak = self.allocated

    def read_peak(self, device=None):
        return self.peak

    def set_device(self, index):
        self._current = index
        shim.set_device(index)

    def _wait(self):
        self.waits[self.where] += 1
        self.queued = 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = op.overloadpacket.__name__
        if name == "_local_scalar_dense":
            return self._read_number(*args)
        if name == "equal":
            # torch.equal; there are no numbers to compare.
            self._wait()
            return False
        if name in PRODUCTS:
            product = args[PRODUCTS[name]]
            if product.device.type == "cuda":
                self.product_dtypes[self.where].add(product.dtype)
        if name == "_to_copy":
            source, target = args[0], kwargs.get("device")
            self._watch_copy(source, target, kwargs.get("non_blocking"))
            if not isinstance(source, FakeTensor):
                # It comes from the loader's thread, outside of this mode.
                args = (self._fake.from_tensor(source), *args[1:])
        elif name == "copy_":
            self._watch_copy(args[1], args[0].device, (*args, False)[2])
        outputs = op(*args, **kwargs)
        self._follow_memory(outputs)
        return outputs

    def _read_number(self, tensor):
        # .item(), float(), bool(): no number is zero, and no test is true.
        if tensor.device.type == "cuda":
            self._wait()
        if tensor.dtype == torch.bool:
            return False
        return 1e6 if tensor.dtype.is_floating_point else 1

    def _watch_copy(self, source, target, non_blocking):
        here = source.device.type
        there = torch.device(here if target is None else target).type
        if (here, there) == ("cuda", "cpu"):
            self._wait()
        elif (here, there) == ("cpu", "cuda"):
            with unset_fake_temporarily():
                pinned = not isinstance(source, FakeTensor) and (
                    torch.ops.aten.is_pinned(source)
                )
            if not pinned or not non_blocking:
                self._wait()

    def _follow_memory(self, outputs):
        for tensor in tree_leaves(outputs):
            if isinstance(tensor, FakeTensor) and tensor.device.type == "cuda":
                self.queued += 1
                self.devices.add(tensor.device)
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self._storages:
                    size = -(-storage.nbytes() // BLOCK) * BLOCK
                    self._storages[key] = weakref.ref(
                        storage, functools.partial(self._free, key, size)
                    )
                    self.allocated += size
                    self.peak = max(self.peak, self.allocated)

    def _free(self, key, size, _):
        del self._storages[key]
        self.allocated -= size

    @contextlib.contextmanager
    def _torch_replaced(self):
        """Replace functions that query a device or refuse fake tensors."""
        properties = types.SimpleNamespace(
            major=9, minor=0, name=NAME, total_memory=self.total_memory,
            multi_processor_count=132,
        )
        replacements = [
            (torch.cuda, name, _returns(value)) for name, value in {
                "is_available": True, "is_initialized": True, "_lazy_init":
                None, "device_count": self.num_devices,
                "get_device_name": NAME, "get_device_capability": (9, 0),
                "get_device_properties": properties, "memory_reserved": 0,
                "mem_get_info": (self.total_memory, self.total_memory),
                "empty_cache": None, "is_bf16_supported": True,
                "manual_seed_all": None, "is_current_stream_capturing": False,
                "get_rng_state": GENERATOR_STATE, "set_rng_state": None,
            }.items()
        ] + [
            (torch.cuda, "set_device", self.set_device),
            (torch.cuda, "current_device", lambda: self._current),
            (torch.cuda, "synchronize", self.synchronize),
            (torch.cuda, "reset_peak_memory_stats", self.reset_peak),
            (torch.cuda, "max_memory_allocated", self.read_peak),
            (torch.nn.Module, "_apply", _apply),
            (F, "scaled_dot_product_attention", _flash_attention),
        ]
        # Let optimizers choose the fused and grouped kernels of a GPU.
        supported = [
            optimizer_module._foreach_supported_types,
            _foreach_utils._foreach_supported_types,
        ]
        saved = [getattr(owner, name) for owner, name, _ in replacements]
        try:
            for owner, name, replacement in replacements:
                setattr(owner, name, replacement)
            for types_ in supported:
                types_.append(FakeTensor)
            yield
        finally:
            for (owner, name, _), value in zip(
                replacements, saved, strict=True
            ):
                setattr(owner, name, value)
            for types_ in supported:
                types_.remove(FakeTensor)


def _returns(value):
    return lambda *args, **kwargs: value


def _apply(module, function, recurse=True):
    """Substitute for ``nn.Module._apply``, which refuses fake parameters."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                with torch.no_grad():
                    part._parameters[name] = torch.nn.Parameter(
                        function(parameter), parameter.requires_grad
                    )
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = function(buffer)
    return module


def _flash_attention(queries, keys, values, is_causal, scale=None):
    """Call the kernel that torch chooses on a GPU after querying it."""
    return torch.ops.aten._scaled_dot_product_flash_attention(
        queries, keys, values, 0.0, is_causal, scale=scale
    )[0]


shim.install_guard()
