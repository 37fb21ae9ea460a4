// The shadow memory, and g++'s calls into it.
#include "checks.hpp"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>
#include <vector>

namespace emulator::checks {

bool on;

using Address = uintptr_t;
constexpr uint16_t ATOMIC = 1 << 15, IN_FLIGHT = 1 << 14, SEEN = 1 << 13;  // flags of a writer

struct Access {
    uint32_t epoch;  // 0: none in this launch
    uint32_t where;  // offset in the kernel's object file
};

/// The last write and the last reads, by two different threads, of a word of 4 bytes; of which bytes, as masks. Of two
/// writes to different bytes of a word the later one is known.
struct Cell {
    Access write, read, other;
    uint16_t writer, reader, other_reader;
    uint8_t write_mask, read_mask, other_mask;
    uint8_t written;                  // bytes that have been written in the block of `write`
    uint8_t ever_read, ever_written;  // in this launch
};

struct Place {
    Address begin, end, words;  // words: the begin, rounded down
    unsigned shift;
    bool global;
    uint8_t* state;  // see Region
    const char* name;
    Cell* cells;
    size_t cell_bytes;
};

struct BlockStart {
    uint32_t epoch;
    uint3 index;
};

static std::vector<Place> places;  // by address
static std::vector<BlockStart> blocks;
static Place *last, *before_last;
static uint32_t block_start;
static Address stacks_begin, image_begin, image_end, slots_begin, slots_end;
static size_t stacks_bytes;
static unsigned threads;
static uint32_t now, floor_, epochs[MAX_THREADS], fenced[MAX_THREADS];
static uint32_t* known;  // known[t * threads + u]: the epoch up to which t has seen u
static Traffic traffic;

// ---------------------------------------------------------------- a launch

static void add(Address begin, size_t bytes, unsigned shift, Region::Kind kind, uint8_t* state, const char* name) {
    if (!bytes) return;
    const Address words = begin & ~Address(3), end = begin + bytes;
    const size_t cell_bytes =
        ((end - words + 3) / 4) * sizeof(Cell);  // fresh pages are zero, untouched ones cost nothing
    void* cells = mmap(nullptr, cell_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (cells == MAP_FAILED) fail({}, "no memory for the shadow of %zu bytes", bytes);
    places.push_back(
        {begin, end, words, shift, kind != Region::shared, state, name, static_cast<Cell*>(cells), cell_bytes});
}

void begin_launch(const Launch& launch, const Kernel& kernel, unsigned block_size, char* stacks, size_t stack_bytes) {
    on = launch.checks;
    if (!on) return;
    threads = block_size;
    stacks_begin = Address(stacks), stacks_bytes = stack_bytes;
    image_begin = Address(kernel.image_begin), image_end = Address(kernel.shared_begin);
    slots_begin = Address(kernel.arguments), slots_end = slots_begin + kernel.argument_bytes;
    for (unsigned i = 0; i < launch.region_count; ++i) {
        const Region& r = launch.regions[i];
        add(r.begin, r.bytes, r.shift, r.kind, r.state, r.name);
    }
    add(Address(dynamic_shared()), dynamic_shared_size(), 0, Region::shared, nullptr, "dynamic shared memory");
    std::sort(places.begin(), places.end(), [](const Place& a, const Place& b) { return a.begin < b.begin; });
    last = before_last = places.data();
    now = 0;
    memset(fenced, 0, sizeof fenced);
    traffic = {};
    known = static_cast<uint32_t*>(calloc(size_t(threads) * threads, sizeof(uint32_t)));
}

void end_launch(Launch& launch) {
    if (!on) return;
    for (const Place& place : places) munmap(place.cells, place.cell_bytes);
    places.clear();
    blocks.clear();
    free(known);
    launch.traffic = traffic;
    on = false;
}

void begin_block() {
    if (!on) return;
    synchronise_block();
    block_start = floor_;
    blocks.push_back({block_start, blockIdx});
}

// ---------------------------------------------------------------- order

void synchronise_block() {
    if (!on) return;
    floor_ = ++now;
    std::fill(epochs, epochs + threads, ++now);
}

void clear(Clock& clock) { memset(&clock, 0, sizeof clock); }

void release(unsigned thread, Clock& clock) {
    if (!on) return;
    const uint32_t* own = known + size_t(thread) * threads;
    for (unsigned i = 0; i < threads; ++i) clock.seen[i] = std::max(clock.seen[i], own[i]);
    clock.seen[thread] = epochs[thread];
    epochs[thread] = ++now;
}

void acquire(unsigned thread, const Clock& clock) {
    if (!on) return;
    uint32_t* own = known + size_t(thread) * threads;
    for (unsigned i = 0; i < threads; ++i) own[i] = std::max(own[i], clock.seen[i]);
}

void synchronise_warp(unsigned warp, unsigned lanes) {
    static Clock clock;
    if (!on) return;
    clear(clock);
    for (unsigned i = 0; i < WARP; ++i)
        if (lanes >> i & 1) release(warp * WARP + i, clock);
    for (unsigned i = 0; i < WARP; ++i)
        if (lanes >> i & 1) acquire(warp * WARP + i, clock);
}

void async_fence() {
    if (!on) return;
    fenced[running_thread] = epochs[running_thread];
    epochs[running_thread] = ++now;
}

static bool same_block(const Access& access) { return access.epoch >= block_start; }

/// Whether the running thread comes after that access.
static bool ordered(const Access& access, unsigned thread, bool global) {
    if (!access.epoch) return true;
    if (!same_block(access)) return !global;
    const unsigned me = running_thread;
    return thread == me || access.epoch < floor_ || access.epoch <= known[size_t(me) * threads + thread];
}

// ---------------------------------------------------------------- reports

static uint3 index_of(unsigned thread) {
    return {thread % blockDim.x, thread / blockDim.x % blockDim.y, thread / (blockDim.x * blockDim.y)};
}

[[noreturn]] static void outside(Address address, size_t bytes, bool write, uint32_t where) {
    char near[256] = "no operand is near";
    Address best = 4096;
    for (const Place& p : places) {
        Address before = p.begin - address, after = address - p.end;
        if (address < p.begin && before < best)
            best = before,
            snprintf(near, sizeof near, "%zu bytes before %s of %zu bytes", before, p.name, p.end - p.begin);
        if (address >= p.end && after < best)
            best = after,
            snprintf(near, sizeof near, "%zu bytes after %s of %zu bytes", after, p.name, p.end - p.begin);
        if (address < p.end && address + bytes > p.end && address >= p.begin)
            best = 0, snprintf(near, sizeof near, "over the end of %s of %zu bytes", p.name, p.end - p.begin);
    }
    fail({nullptr, int(where)}, "out of bounds: %s of %zu bytes, %s", write ? "a write" : "a read", bytes, near);
}

[[noreturn]] static void gap(const Place& place, Address address, size_t bytes, bool write, uint32_t where) {
    fail({nullptr, int(where)}, "out of bounds: %s of %zu bytes between the elements of %s, %zu bytes after its start",
         write ? "a write" : "a read", bytes, place.name, address - place.begin);
}

[[noreturn]] static void unwritten(const Place& place, Address address, size_t bytes, uint32_t where) {
    fail({nullptr, int(where)}, "uninitialised: a read of %zu bytes that nothing has written yet, %zu bytes into %s",
         bytes, address - place.begin, place.name);
}

[[noreturn]] static void in_flight(const Place& place, Address address, const Cell& cell, bool write, uint32_t where) {
    uint3 t = index_of(cell.writer & (MAX_THREADS - 1));
    fail({nullptr, int(where)},
         "%s before an asynchronous copy has landed, %zu bytes into %s\n  the copy was started by thread (%u, %u, "
         "%u)@{%x}",
         write ? "a write" : "a read", address - place.begin, place.name, t.x, t.y, t.z, cell.write.where);
}

[[noreturn]] static void unfenced(const Place& place, Address address, const Cell& cell, uint32_t where) {
    uint3 t = index_of(cell.writer & (MAX_THREADS - 1));
    fail({nullptr, int(where)},
         "no async_fence between a write and an asynchronous read of it, %zu bytes into %s\n  the write was by thread "
         "(%u, %u, %u)@{%x}",
         address - place.begin, place.name, t.x, t.y, t.z, cell.write.where);
}

[[noreturn]] static void race(const Place& place, Address address, const Access& before, unsigned thread,
                              const char* what, const char* earlier, uint32_t where) {
    uint3 t = index_of(thread);
    char block[64] = "";
    if (!same_block(before)) {
        auto later = std::upper_bound(blocks.begin(), blocks.end(), before.epoch,
                                      [](uint32_t epoch, const BlockStart& start) { return epoch < start.epoch; });
        uint3 b = (later - 1)->index;
        snprintf(block, sizeof block, " of block (%u, %u, %u)", b.x, b.y, b.z);
    }
    fail({nullptr, int(where)},
         "race: a %s, %zu bytes into %s, with no barrier after a %s\n  the %s was by thread (%u, %u, %u)%s@{%x}", what,
         address - place.begin, place.name, earlier, earlier, t.x, t.y, t.z, block, before.where);
}

// ---------------------------------------------------------------- an access

static Place* find(Address address) {
    if (address >= last->begin && address < last->end) return last;
    std::swap(last, before_last);
    if (address >= last->begin && address < last->end) return last;
    auto after = std::upper_bound(places.begin(), places.end(), address,
                                  [](Address a, const Place& place) { return a < place.begin; });
    if (after == places.begin() || address >= (after - 1)->end) return nullptr;
    return last = &*(after - 1);
}

/// The region of an access, which is an error if there is none; null for memory that is not checked.
static Place* region(Address address, size_t bytes, bool writes, uint32_t where) {
    Place* place = find(address);
    if (!place && !writes) {
        if (address >= image_begin && address + bytes <= image_end) return nullptr;  // tables of constants
        if (address >= slots_begin && address + bytes <= slots_end) return nullptr;
    }
    if (!place || address + bytes > place->end) outside(address, bytes, writes, where);
    return place;
}

/// Goes over the words of an access: what(cell, mask of its bytes).
template <class F>
static inline void over_words(const Place& place, Address address, size_t bytes, F what) {
    Address at = address;
    for (const Address end = address + bytes; at < end;) {
        const Address word = at & ~Address(3), next = std::min(word + 4, end);
        const uint8_t mask = ((1u << (next - at)) - 1) << (at - word);
        what(place.cells[(word - place.words) >> 2], mask);
        at = next;
    }
}

static void touch_states(const Place& place, Address address, size_t bytes, bool writes, uint32_t where) {
    const size_t first = (address - place.begin) >> place.shift,
                 last = (address + bytes - 1 - place.begin) >> place.shift;
    for (size_t granule = first; granule <= last; ++granule) {
        uint8_t& state = place.state[granule];
        if (state == Region::outside) gap(place, address, bytes, writes, where);
        if (state == Region::unwritten && !writes) unwritten(place, address, bytes, where);
        state = Region::accessible;
    }
}

static inline bool conflict(const Access& before, unsigned thread, uint8_t before_mask, uint8_t mask, bool global) {
    return (before_mask & mask) && !ordered(before, thread, global);
}

static inline void touch(const Place& place, Cell& cell, uint8_t mask, Address address, size_t bytes, Mode mode,
                         uint32_t where) {
    const bool global = place.global, writes = mode != read && mode != async_read,
               here = cell.write.epoch && same_block(cell.write);
    const unsigned me = running_thread, writer = cell.writer & (MAX_THREADS - 1);
    const char* what = writes ? "write" : "read";
    if (cell.writer & IN_FLIGHT && here && (cell.write_mask & mask)) in_flight(place, address, cell, writes, where);
    if (!global && !writes && (mask & ~(here ? cell.written : 0))) unwritten(place, address, bytes, where);
    if (conflict(cell.write, writer, cell.write_mask, mask, global) && !(mode == update && cell.writer & ATOMIC))
        race(place, address, cell.write, writer, what, "write", where);
    if (mode == async_read && !global && !(cell.writer & SEEN) && cell.write.epoch > fenced[writer])
        unfenced(place, address, cell, where);
    if (writes) {
        if (conflict(cell.read, cell.reader, cell.read_mask, mask, global))
            race(place, address, cell.read, cell.reader, what, "read", where);
        if (conflict(cell.other, cell.other_reader, cell.other_mask, mask, global))
            race(place, address, cell.other, cell.other_reader, what, "read", where);
        cell.written = mask | (here ? cell.written : 0);
        const bool same = cell.write.epoch == epochs[me] && writer == me;
        cell.write_mask = mask | (same ? cell.write_mask : 0);
        cell.write = {epochs[me], where};
        cell.writer = me | (mode == update ? ATOMIC : mode == start ? IN_FLIGHT : 0);
        traffic.distinct_written += global ? __builtin_popcount(mask & ~cell.ever_written) : 0;
        cell.ever_written |= mask;
    } else {
        if (cell.reader != me)
            cell.other = cell.read, cell.other_reader = cell.reader, cell.other_mask = cell.read_mask;
        const bool same = cell.read.epoch == epochs[me] && cell.reader == me;
        cell.read_mask = mask | (same ? cell.read_mask : 0);
        cell.read = {epochs[me], where};
        cell.reader = me;
        traffic.distinct_read += global ? __builtin_popcount(mask & ~cell.ever_read) : 0;
        cell.ever_read |= mask;
    }
}

static uint32_t offset_of(const void* caller) { return Address(caller) - image_begin; }

void access(const void* pointer, size_t bytes, Mode mode, const void* caller) {
    const Address address = Address(pointer);
    if (!on || address - stacks_begin < stacks_bytes || !bytes) return;
    const bool writes = mode != read && mode != async_read;
    const uint32_t where = offset_of(caller);
    const Place* place = region(address, bytes, writes, where);
    if (!place) return;
    if (place->global) (writes ? traffic.written : traffic.read) += bytes;
    if (place->state) touch_states(*place, address, bytes, writes, where);
    over_words(*place, address, bytes,
               [&](Cell& cell, uint8_t mask) { touch(*place, cell, mask, address, bytes, mode, where); });
}

void land(const void* pointer, size_t bytes, bool seen) {
    if (!on) return;
    const Place* place = region(Address(pointer), bytes, true, 0);
    over_words(*place, Address(pointer), bytes, [&](Cell& cell, uint8_t) {
        cell.write.epoch = epochs[running_thread];
        cell.writer = running_thread | (seen ? SEEN : 0);
    });
}

void fail_at(const void* caller, const char* format, ...) {
    char text[256];
    va_list values;
    va_start(values, format);
    vsnprintf(text, sizeof text, format, values);
    va_end(values);
    fail({nullptr, on ? int(offset_of(caller)) : 0}, "%s", text);
}

}  // namespace emulator::checks

namespace emulator {

void updates(void* address, size_t bytes) {
    checks::access(address, bytes, checks::update, __builtin_return_address(0));
}

}  // namespace emulator

// ---------------------------------------------------------------- what g++ calls for -fsanitize=thread

#define EMULATOR_ACCESS(name, bytes, mode)                                                             \
    extern "C" EMULATOR_API void name(void* address) {                                                 \
        emulator::checks::access(address, bytes, emulator::checks::mode, __builtin_return_address(0)); \
    }
#define EMULATOR_ACCESSES(bytes)                               \
    EMULATOR_ACCESS(__tsan_read##bytes, bytes, read)           \
    EMULATOR_ACCESS(__tsan_write##bytes, bytes, write)         \
    EMULATOR_ACCESS(__tsan_unaligned_read##bytes, bytes, read) \
    EMULATOR_ACCESS(__tsan_unaligned_write##bytes, bytes, write)
EMULATOR_ACCESSES(1)
EMULATOR_ACCESSES(2)
EMULATOR_ACCESSES(4)
EMULATOR_ACCESSES(8)
EMULATOR_ACCESSES(16)
extern "C" EMULATOR_API void __tsan_read_range(void* address, size_t bytes) {
    emulator::checks::access(address, bytes, emulator::checks::read, __builtin_return_address(0));
}
extern "C" EMULATOR_API void __tsan_write_range(void* address, size_t bytes) {
    emulator::checks::access(address, bytes, emulator::checks::write, __builtin_return_address(0));
}
extern "C" EMULATOR_API void __tsan_init() {}
extern "C" EMULATOR_API void __tsan_func_entry(void*) {}
extern "C" EMULATOR_API void __tsan_func_exit() {}
