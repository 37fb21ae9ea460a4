"""Memory as the CPU kernels see it: an address, element strides, and how a dtype is stored.

Kernels take addresses and strides in place of arrays, so that one compiled kernel serves every
layout and every slice. `load` widens what it reads to the type that is computed in, `store` narrows:

    stored                          computed in
    float16, bfloat16, float32      float32
    float64                         float64
    int8 ... int32, uint8, uint16   int32
    uint32, int64                   int64
    uint64                          uint64

Numba has no 16-bit floats on the CPU, so float16 and bfloat16 are converted here, from their bits.
"""

from functools import lru_cache

import numpy as np
from numba import njit, types
from numba.extending import (
    NativeValue,
    intrinsic,
    models,
    overload,
    register_model,
    typeof_impl,
    unbox,
)


class Storage:
    """A dtype as a value that kernels specialise on: `STORAGE["bfloat16"]`."""

    def __init__(self, name):
        self.name = name

    def __repr__(self):
        return self.name

    def __reduce__(self):
        return STORAGE.__getitem__, (self.name,)


class StorageType(types.Type):
    def __init__(self, name):
        self.stored = name
        super().__init__(name=f"Storage({name})")


register_model(StorageType)(models.OpaqueModel)


_storage_type = lru_cache(maxsize=None)(StorageType)  # every launch asks for the types of its arguments


@typeof_impl.register(Storage)
def _typeof_storage(value, context):
    return _storage_type(value.name)


@unbox(StorageType)
def _unbox_storage(typ, obj, context):
    return NativeValue(context.context.get_dummy_value())


class ArrayType(types.Type):
    """Any NumPy array, of which a kernel learns the address: `address_of.compile((array_type,))`."""


array_type = ArrayType("Array")
register_model(ArrayType)(models.OpaqueModel)


@unbox(ArrayType)
def _unbox_array(typ, obj, context):
    return NativeValue(obj)


@intrinsic
def _data(typing, array):
    """The `data` of the array object, which NumPy's C interface puts right behind Python's object header."""

    def generate(context, builder, signature, args):
        header = context.get_constant(types.intp, object.__basicsize__ // np.dtype(np.intp).itemsize)
        fields = builder.bitcast(args[0], context.get_value_type(types.intp).as_pointer())
        return builder.load(builder.gep(fields, [header]))

    return types.int64(array), generate


@njit
def address_of(array):
    """The address of an array's first element."""
    return _data(array)


BITS = {"float16": types.uint16, "bfloat16": types.uint16}  # what lies in memory, where it is not the dtype itself
FLOATS = ("float16", "bfloat16", "float32")
SMALL_INTS = ("bool", "int8", "uint8", "int16", "uint16", "int32")
STORAGE = {
    name: Storage(name)
    for name in (
        "bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64",
        "float16", "bfloat16", "float32", "float64",
    )
}  # fmt: skip


def stored_type(name):
    """The Numba type of one element in memory."""
    if name == "bool":
        return types.uint8
    return BITS.get(name) or getattr(types, name)


def computed_name(name):
    """The name of the dtype that a stored dtype is computed in."""
    if name in FLOATS:
        return "float32"
    if name in SMALL_INTS:
        return "int32"
    return "int64" if name == "uint32" else name


def itemsize(name):
    return stored_type(name).bitwidth // 8


# ---------------------------------------------------------------- raw access


def _element(builder, address, index, element):
    """A pointer to element `index`: a GEP, so that LLVM sees the stride and can vectorise."""
    return builder.gep(builder.inttoptr(address, element.as_pointer()), [index])


@intrinsic
def read(typing, storage, address, index):
    """The element as it lies in memory."""
    element = stored_type(storage.stored)

    def generate(context, builder, signature, args):
        llvm = context.get_data_type(element)
        value = builder.load(_element(builder, args[1], args[2], llvm))
        value.align = element.bitwidth // 8
        return context.data_model_manager[element].from_data(builder, value)

    return element(storage, types.int64, types.int64), generate


@intrinsic
def write(typing, storage, address, index, value):
    """Put an element into memory as it is."""
    element = stored_type(storage.stored)

    def generate(context, builder, signature, args):
        llvm = context.get_data_type(element)
        data = context.data_model_manager[element].as_data(builder, args[3])
        store = builder.store(data, _element(builder, args[1], args[2], llvm))
        store.align = element.bitwidth // 8
        return context.get_dummy_value()

    return types.void(storage, types.int64, types.int64, element), generate


def _bitcast(source, target):
    @intrinsic
    def cast(typing, value):
        def generate(context, builder, signature, args):
            return builder.bitcast(args[0], context.get_value_type(target))

        return target(source), generate

    return cast


float_of_bits = _bitcast(types.uint32, types.float32)
bits_of_float = _bitcast(types.float32, types.uint32)


# ---------------------------------------------------------------- 16-bit floats


@njit
def from_bfloat16(bits):
    return float_of_bits(np.uint32(bits) << np.uint32(16))


@njit
def to_bfloat16(value):
    """Round to nearest, ties to even; a NaN stays one."""
    bits = bits_of_float(value)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    nan = (bits >> np.uint32(16)) | np.uint32(0x40)
    return np.uint16(nan if value != value else rounded)


@njit
def from_float16(bits):
    """Shift the exponent and mantissa into float32's place and scale by 2**112, which denormals survive."""
    sign = (np.uint32(bits) & np.uint32(0x8000)) << np.uint32(16)
    rest = (np.uint32(bits) & np.uint32(0x7FFF)) << np.uint32(13)
    scaled = bits_of_float(float_of_bits(rest) * np.float32(2.0**112))
    special = rest | np.uint32(0x7F800000)  # infinity and NaN
    return float_of_bits((special if rest >= np.uint32(0x0F800000) else scaled) | sign)


@njit
def to_float16(value):
    """Round to nearest, ties to even, into float16's normal, denormal or infinite range."""
    bits = bits_of_float(value)
    sign = (bits >> np.uint32(16)) & np.uint32(0x8000)
    size = bits & np.uint32(0x7FFFFFFF)
    # Adding half of 2**-13 makes the float32 adder round a denormal to float16's spacing.
    small = bits_of_float(float_of_bits(size) + np.float32(0.5)) - np.uint32(0x3F000000)
    odd = (size >> np.uint32(13)) & np.uint32(1)
    normal = (size - np.uint32(0x38000000) + np.uint32(0xFFF) + odd) >> np.uint32(13)
    large = np.uint32(0x7E00) if size > np.uint32(0x7F800000) else np.uint32(0x7C00)
    finite = small if size < np.uint32(0x38800000) else normal
    return np.uint16((large if size >= np.uint32(0x47800000) else finite) | sign)


# ---------------------------------------------------------------- typed access


def load(storage, address, index):
    """Element `index` of the array at `address`, widened to the type that is computed in."""
    raise NotImplementedError("only inside kernels")


def store(storage, address, index, value):
    """Put `value`, narrowed to the stored type, at element `index` of the array at `address`."""
    raise NotImplementedError("only inside kernels")


def size(storage):
    """Bytes of one stored element."""
    raise NotImplementedError("only inside kernels")


def zero(storage):
    """0 in the type that a stored dtype is computed in."""
    raise NotImplementedError("only inside kernels")


@overload(load)
def _load(storage, address, index):
    if storage.stored == "float16":
        return lambda storage, address, index: from_float16(read(storage, address, index))
    if storage.stored == "bfloat16":
        return lambda storage, address, index: from_bfloat16(read(storage, address, index))
    computed = getattr(np, computed_name(storage.stored))
    return lambda storage, address, index: computed(read(storage, address, index))


@overload(store)
def _store(storage, address, index, value):
    if storage.stored == "float16":
        return lambda storage, address, index, value: write(storage, address, index, to_float16(np.float32(value)))
    if storage.stored == "bfloat16":
        return lambda storage, address, index, value: write(storage, address, index, to_bfloat16(np.float32(value)))
    if storage.stored == "bool":
        return lambda storage, address, index, value: write(storage, address, index, np.uint8(value != 0))
    narrow = getattr(np, storage.stored)
    return lambda storage, address, index, value: write(storage, address, index, narrow(value))


@overload(zero)
def _zero(storage):
    computed = getattr(np, computed_name(storage.stored))
    return lambda storage: computed(0)


@overload(size)
def _size(storage):
    nbytes = itemsize(storage.stored)
    return lambda storage: nbytes
