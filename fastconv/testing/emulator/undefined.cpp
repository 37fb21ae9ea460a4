// What g++ calls for -fsanitize=undefined: each kind of undefined behaviour ends the launch with a message.
//
// The layouts of the data are the compiler's interface to its runtime; all begin with the place in the source.
#include "runtime.hpp"

#include <cstring>

namespace {

struct Location {
    const char* file;
    uint32_t line, column;
};
struct Type {
    uint16_t kind, info;  // of an integer: 1 if it is signed, and twice the logarithm of its bits
    char name[1];
};
struct TypeData {
    Location at;
    const Type* type;
};
struct ShiftData {
    Location at;
    const Type *left, *right;
};
struct BoundsData {
    Location at;
    const Type *array, *index;
};
struct MismatchData {
    Location at;
    const Type* type;
    unsigned char log_alignment, access;
};

emulator::Site site(const Location& at) { return {at.file, int(at.line)}; }

/// An operand as a signed number; those of more than 64 bits come by address.
long long value(const Type* type, uintptr_t raw) {
    unsigned bits = 1u << (type->info >> 1);
    if (bits >= 64) return static_cast<long long>(raw);
    return type->info & 1 ? static_cast<long long>(raw << (64 - bits)) >> (64 - bits)
                          : static_cast<long long>(raw & ((uintptr_t(1) << bits) - 1));
}

}  // namespace

#define EMULATOR_UNDEFINED(kind, Data, ...) \
    extern "C" EMULATOR_API [[noreturn]] void __ubsan_handle_##kind(Data* data, ##__VA_ARGS__)

#define EMULATOR_OVERFLOW(kind, sign)                                                                               \
    EMULATOR_UNDEFINED(kind##_overflow_abort, TypeData, uintptr_t a, uintptr_t b) {                                 \
        emulator::fail(site(data->at), "undefined: the overflow of %lld " sign " %lld in %s", value(data->type, a), \
                       value(data->type, b), data->type->name);                                                     \
    }
EMULATOR_OVERFLOW(add, "+")
EMULATOR_OVERFLOW(sub, "-")
EMULATOR_OVERFLOW(mul, "*")
EMULATOR_OVERFLOW(divrem, "/")

EMULATOR_UNDEFINED(negate_overflow_abort, TypeData, uintptr_t a) {
    emulator::fail(site(data->at), "undefined: the overflow of -(%lld) in %s", value(data->type, a), data->type->name);
}
EMULATOR_UNDEFINED(shift_out_of_bounds_abort, ShiftData, uintptr_t a, uintptr_t b) {
    emulator::fail(site(data->at), "undefined: a shift of %lld by %lld in %s", value(data->left, a),
                   value(data->right, b), data->left->name);
}
EMULATOR_UNDEFINED(out_of_bounds_abort, BoundsData, uintptr_t index) {
    emulator::fail(site(data->at), "out of bounds: the index %lld into %s", value(data->index, index),
                   data->array->name);
}
EMULATOR_UNDEFINED(type_mismatch_v1_abort, MismatchData, uintptr_t address) {
    const size_t alignment = size_t(1) << data->log_alignment;
    if (!address) emulator::fail(site(data->at), "undefined: a null pointer is used as %s", data->type->name);
    if (address % alignment)
        emulator::fail(site(data->at), "misaligned: the address %p of %s is not a multiple of %zu bytes",
                       reinterpret_cast<void*>(address), data->type->name, alignment);
    emulator::fail(site(data->at), "undefined: no room for %s at %p", data->type->name,
                   reinterpret_cast<void*>(address));
}
EMULATOR_UNDEFINED(load_invalid_value_abort, TypeData, uintptr_t raw) {
    emulator::fail(site(data->at), "undefined: the value %lld of %s", static_cast<long long>(raw), data->type->name);
}
EMULATOR_UNDEFINED(builtin_unreachable, Location) {
    emulator::fail(site(*data), "undefined: a place is reached that was declared unreachable");
}
EMULATOR_UNDEFINED(missing_return, Location) {
    emulator::fail(site(*data), "undefined: a function ends without its result");
}
EMULATOR_UNDEFINED(vla_bound_not_positive_abort, TypeData, uintptr_t bound) {
    emulator::fail(site(data->at), "undefined: an array of %lld elements", value(data->type, bound));
}
