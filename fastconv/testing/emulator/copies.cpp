// Copies that run ahead of their use: cp.async.
#include "checks.hpp"
#include "hardware.hpp"

#include <cstring>
#include <vector>

namespace emulator {

// ---------------------------------------------------------------- the shared window

constexpr uint32_t WINDOW = 1024;  // no variable lies at 0

bool is_shared(const void* address, size_t bytes) {
    const char* at = static_cast<const char*>(address);
    const char *dynamic = static_cast<char*>(dynamic_shared()), *begin = static_shared(),
               *end = begin + static_shared_size();
    return (at >= dynamic && at + bytes <= dynamic + dynamic_shared_size()) || (at >= begin && at + bytes <= end);
}

static size_t static_window() {  // as far from a multiple of 1024 as the variables are
    return WINDOW + (dynamic_shared_size() + 1023) / 1024 * 1024 + reinterpret_cast<uintptr_t>(static_shared()) % 1024;
}

uint32_t shared_offset(const void* address) {
    const char *at = static_cast<const char*>(address), *dynamic = static_cast<char*>(dynamic_shared());
    if (at >= dynamic && at <= dynamic + dynamic_shared_size()) return WINDOW + (at - dynamic);
    if (!is_shared(address, 0)) fail({}, "the address %p is not in shared memory", address);
    return static_window() + (at - static_shared());
}

char* shared_pointer(uint32_t offset) {
    if (offset >= static_window()) return static_shared() + (offset - static_window());
    return static_cast<char*>(dynamic_shared()) + offset - WINDOW;
}

// ---------------------------------------------------------------- cp.async

struct Copy {
    Landing landing;
    uint32_t group;
};

/// A thread's copies that have not landed, oldest first; those of the group that is not committed yet are the last.
struct Queue {
    std::vector<Copy> copies;
    uint32_t groups;  // committed so far
};

static Queue queues[MAX_THREADS];

void forget_copies(unsigned threads) {
    for (unsigned i = 0; i < threads; ++i) queues[i].copies.clear(), queues[i].groups = 0;
}

void copy_async(void* to, const void* from, unsigned bytes, unsigned filled) {
    const void* caller = __builtin_return_address(0);
    if (reinterpret_cast<uintptr_t>(to) % bytes || (filled && reinterpret_cast<uintptr_t>(from) % bytes))
        checks::fail_at(caller, "misaligned: cp.async of %u bytes from %p to %p", bytes, from, to);
    if (!is_shared(to, bytes)) checks::fail_at(caller, "cp.async to %p, which is not in shared memory", to);
    Queue& queue = queues[thread_number()];
    Copy copy{{to, bytes, {}}, queue.groups};
    checks::access(from, filled, checks::read, caller);
    checks::access(to, bytes, checks::start, caller);
    if (filled) memcpy(copy.landing.data, from, filled);
    memset(to, 0xff, bytes);
    queue.copies.push_back(copy);
}

void copy_async_commit() { queues[thread_number()].groups++; }

void copy_async_wait(unsigned latest) {
    Queue& queue = queues[thread_number()];
    size_t landed = 0;
    for (; landed < queue.copies.size() && queue.copies[landed].group + latest < queue.groups; ++landed) {
        const Landing& copy = queue.copies[landed].landing;
        memcpy(copy.to, copy.data, copy.bytes);
        checks::land(copy.to, copy.bytes);
    }
    queue.copies.erase(queue.copies.begin(), queue.copies.begin() + landed);
}

size_t take_copies(Landing* into, size_t room) {
    auto& copies = queues[thread_number()].copies;
    const size_t count = copies.size() < room ? copies.size() : room;
    for (size_t i = 0; i < count; ++i) into[i] = copies[i].landing;
    copies.erase(copies.begin(), copies.begin() + count);
    return count;
}

}  // namespace emulator
