"""Runs a Gluon kernel of `kernels.hopper_kernel` on a CPU: one thread for each partition, and the latest moments.

Triton's interpreter knows no Gluon. What is asynchronous happens here as late as the kernel allows: a product reads its
operands when it is waited for, a store its buffer when that is, a load comes a moment after it was asked for, and who
arrives at a barrier lets the others go first. So a buffer that is given back, or written, too early spoils the result,
and a barrier that nobody arrives at ends the test. The threads of a partition are one here: what lies between them
(barriers that the compiler adds, stores of one thread for all) is not seen, nor are layouts.
"""

from __future__ import annotations

import operator
import random
import threading
import time
import types
from collections.abc import Callable
from typing import Any

import numpy as np

from kernels import hopper_kernel, linear_kernel, numerics

SECONDS = 30.0  # a wait that takes longer never ends
DELAYS = random.Random(0)
LOADING, YIELDING = 0.012, 0.008  # seconds at most until a load comes, and after an arrival


class Value:
    """An array in registers."""

    def __init__(self, array: Any) -> None:
        self.array = np.asarray(array)
        self.shape, self.dtype, self.type = self.array.shape, self.array.dtype, types.SimpleNamespace(layout=None)

    def to(self, dtype: Any) -> Value:
        return Value(self.array.astype(dtype))

    def reshape(self, shape: Any) -> Value:
        return Value(self.array.reshape(shape))

    def split(self) -> tuple[Value, Value]:
        return Value(self.array[..., 0]), Value(self.array[..., 1])

    def __getitem__(self, key: Any) -> Value:
        return Value(self.array[key])


def _of(x: Any) -> Any:
    return x.array if isinstance(x, Value) else x


def _both(compute: Callable[[Any, Any], Any], turned: bool = False) -> Callable[[Any, Any], Value]:
    return lambda a, b: Value(compute(_of(b), _of(a)) if turned else compute(_of(a), _of(b)))


for _name in ("add", "sub", "mul", "floordiv", "mod", "lt", "and_"):
    _plain = _name.strip("_")
    setattr(Value, f"__{_plain}__", _both(getattr(operator, _name)))
    setattr(Value, f"__r{_plain}__", _both(getattr(operator, _name), turned=True))


class Pointer:
    """Where a flat array begins; adding indices gives where each of them lies."""

    def __init__(self, array: Any, indices: Any = 0) -> None:
        self.array, self.indices = array, indices

    def __add__(self, other: Any) -> Pointer:
        return Pointer(self.array, self.indices + _of(other))

    def load(self, mask: Any = None, other: float = 0) -> Value:
        flat = self.array.reshape(-1)
        if mask is None:
            return Value(flat[self.indices])  # an index that lies outside raises
        inside = np.broadcast_to(_of(mask), np.shape(self.indices))
        return Value(np.where(inside, flat[np.where(inside, self.indices, 0)], flat.dtype.type(other)))


class Descriptor:
    """A matrix that is copied in boxes: zeros come from outside, nothing goes there."""

    def __init__(self, array: Any, shape: tuple[int, int]) -> None:
        self.array, self.dtype, self.layout = array, array.dtype, None
        self.block_type = types.SimpleNamespace(shape=shape, nbytes=int(np.prod(shape)) * array.itemsize)

    def box(self, place: Any) -> tuple[slice, slice]:
        first, second = (slice(at, at + size) for at, size in zip(place, self.block_type.shape, strict=True))
        return first, second


class Shared:
    """Shared memory, or a part or view of it."""

    def __init__(self, array: Any) -> None:
        self.array, self.is_fenced = array, True

    def index(self, at: int) -> Shared:
        return Shared(self.array[at])

    def permute(self, order: Any) -> Shared:
        return Shared(self.array.transpose(order))

    def store(self, value: Value) -> None:
        assert value.array.dtype == self.array.dtype
        self.array[...] = value.array
        self.touch()

    def load(self, layout: Any) -> Value:
        self.touch()
        return Value(self.array.copy())

    def touch(self) -> None:
        self.is_fenced = False
        vars(TOUCHED).setdefault("buffers", []).append(self)


TOUCHED = threading.local()  # by the threads of a partition, not fenced yet


def fence_async_shared() -> None:
    """What this partition's threads wrote or read, copies may now read and write."""
    for each in vars(TOUCHED).pop("buffers", []):
        each.is_fenced = True


class Barrier:
    """An mbarrier: a phase ends when its arrivals and its bytes have come."""

    def __init__(self) -> None:
        self.changed, self.count, self.missing, self.bytes, self.phase = threading.Condition(), 0, 0, 0, 0

    def update(self, arrivals: int = 0, size: int = 0) -> None:
        with self.changed:
            self.missing -= arrivals
            self.bytes += size
            assert self.missing >= 0, "more arrivals than the barrier counts"
            if self.missing == 0 and self.bytes == 0:
                self.phase, self.missing = self.phase ^ 1, self.count
                self.changed.notify_all()

    def wait(self, phase: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.phase != phase, SECONDS), "a barrier that nobody arrives at"


class Program:
    """One program of a grid; its partitions run as threads."""

    def __init__(self, number: int, programs: int) -> None:
        self.number, self.programs = number, programs
        self.products, self.stores = threading.local(), threading.local()  # of each partition, not waited for yet
        self.errors: list[BaseException] = []

    def names(self) -> dict[str, Any]:
        """Return what stands for Gluon's names in a kernel."""
        gl = types.SimpleNamespace(
            program_id=lambda axis: self.number, num_programs=lambda axis: self.programs,
            cdiv=lambda a, b: -(-a // b), minimum=min, static_range=range, SliceLayout=lambda *_: None,
            NVMMADistributedLayout=lambda **_: None, arange=lambda low, high, layout: Value(np.arange(low, high)),
            zeros=lambda shape, dtype, layout: Value(np.zeros(shape, dtype)), load=lambda at, **kw: at.load(**kw),
            int8=np.int8, int32=np.int32, int64=np.int64, float32=np.float32, warp_specialize=self.partitions,
            allocate_shared_memory=self.allocate, static_assert=lambda condition: None,
        )  # fmt: skip
        mbarrier = types.SimpleNamespace(
            MBarrierLayout=lambda: "barriers", wait=lambda bar, phase: bar.wait(phase),
            init=lambda bar, count: vars(bar).update(count=count, missing=count),
            expect=lambda bar, size: bar.update(1, size),
            arrive=lambda bar, count: (bar.update(count), time.sleep(DELAYS.uniform(0, YIELDING))),
        )  # fmt: skip
        tma = types.SimpleNamespace(async_copy_global_to_shared=self.fetch, async_copy_shared_to_global=self.send,
                                    store_wait=self.wait_for_stores)  # fmt: skip
        return {"gl": gl, "mbarrier": mbarrier, "tma": tma, "fence_async_shared": fence_async_shared, "range": range,
                "warpgroup_mma": self.multiply, "warpgroup_mma_wait": self.wait_for_products, "min": min,
                "begin_kernel": lambda overlapped: None, "GROUP": 8, "FIRST_APPROXIMATE": 2}

    def allocate(self, dtype: Any, shape: Any, layout: Any) -> Any:
        if layout == "barriers":
            made = [Barrier() for _ in range(shape[0])]
            return types.SimpleNamespace(index=lambda at: made[at])
        return Shared(np.full(shape, 77, dtype))

    def partitions(self, calls: Any, warps: Any, registers: Any) -> None:
        def run(function: Any, args: Any) -> None:
            try:
                function(*args)
            except BaseException as error:
                self.errors.append(error)

        threads = [threading.Thread(target=run, args=each, daemon=True) for each in calls]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(3 * SECONDS)
        if self.errors:
            raise self.errors[0]
        assert not any(thread.is_alive() for thread in threads)

    def fetch(self, source: Descriptor, place: Any, bar: Barrier, into: Shared) -> None:
        assert into.is_fenced, "a copy to where a thread wrote or read, without a fence"

        def come() -> None:
            try:
                found = source.array[source.box(place)]
                into.array[...] = 0
                into.array[: found.shape[0], : found.shape[1]] = found
                bar.update(0, -source.block_type.nbytes)
            except BaseException as error:
                self.errors.append(error)

        threading.Timer(DELAYS.uniform(0, LOADING), come).start()

    def send(self, target: Descriptor, place: Any, source: Shared) -> None:
        assert source.is_fenced, "a copy of what a thread wrote, without a fence"
        vars(self.stores).setdefault("waiting", []).append((target, place, source))

    def wait_for_stores(self, pendings: int) -> None:
        waiting = vars(self.stores).setdefault("waiting", [])
        while len(waiting) > pendings:
            target, place, source = waiting.pop(0)
            into = target.array[target.box(place)]
            into[...] = source.array[: into.shape[0], : into.shape[1]]

    def multiply(self, a: Shared, b: Shared, acc: Value, use_acc: bool = True, is_async: bool = False) -> Value:
        assert is_async
        result = Value(np.full(acc.shape, -(2**30), np.int32))  # until it is waited for
        vars(self.products).setdefault("waiting", []).append((a, b, acc, use_acc, result))
        return result

    def wait_for_products(self, num_outstanding: int, deps: Any) -> Value:
        waiting = vars(self.products).setdefault("waiting", [])
        while len(waiting) > num_outstanding:
            a, b, acc, use_acc, result = waiting.pop(0)
            product = a.array.astype(np.int32) @ b.array.astype(np.int32)
            result.array[...] = product + acc.array if use_acc else product
        return deps[0]


def run_linear(arguments: dict[str, Any], elementwise: dict[str, Callable[..., Any]], programs: int) -> None:
    """Run `linear_pingpong_kernel` with its arguments by name, and these functions for those of `kernels.numerics`."""
    for number in range(programs):
        names = {**Program(number, programs).names(), **elementwise}
        names["tl"] = names["gl"]
        shared = (numerics.of_columns, numerics.affine, numerics.add_residual, numerics.quantize_columns)
        for each in (linear_kernel.place_of, *shared):  # Triton's functions run in Gluon as they are
            names[each.__name__] = types.FunctionType(each.fn.__code__, names)
        for each in vars(hopper_kernel).values():
            if hasattr(each, "fn") and each.__module__ == hopper_kernel.__name__:
                names[each.__name__] = types.FunctionType(each.fn.__code__, names)
        names["linear_pingpong_kernel"](**arguments)
