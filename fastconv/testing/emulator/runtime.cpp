// Fibers, the schedule of a block's threads, barriers and collectives.
#include "checks.hpp"

#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>

#if !defined(__x86_64__) && !defined(__aarch64__)
#include <ucontext.h>
#endif

uint3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

// ---------------------------------------------------------------- fibers

constexpr size_t STACK = 256 << 10, GUARD = 4 << 10;

#if defined(__x86_64__) || defined(__aarch64__)

using Context = void*;  // the stack pointer, below which the callee-saved registers lie

extern "C" void fastconv_switch(Context* from, Context to);

#ifdef __x86_64__
asm(R"(
.text
.type fastconv_switch, @function
fastconv_switch:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
.size fastconv_switch, .-fastconv_switch
)");
constexpr size_t SAVED = 6, RETURN = 6, FRAME = 8;  // words: saved registers, place of the return address, whole frame
#else
asm(R"(
.text
.type fastconv_switch, %function
fastconv_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
.size fastconv_switch, .-fastconv_switch
)");
constexpr size_t RETURN = 11, FRAME = 20;
#endif

static void prepare(Context& context, char* stack, void (*entry)()) {
    auto** top = reinterpret_cast<void**>(stack + STACK) - 2 - FRAME;  // `ret` leaves the stack as a call would
    memset(top, 0, FRAME * sizeof(void*));
    top[RETURN] = reinterpret_cast<void*>(entry);
    context = top;
}
static void switch_to(Context& from, Context& to) { fastconv_switch(&from, to); }

#else

using Context = ucontext_t;
static void prepare(Context& context, char* stack, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = STACK;
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
}
static void switch_to(Context& from, Context& to) { swapcontext(&from, &to); }

#endif

struct Fiber {
    Context context;
    char* stack;
};

// ---------------------------------------------------------------- the block that runs

enum class Waits { no, block, warp, named, key };

struct Thread {
    uint3 index;
    Fiber* fiber;  // null: not started, or finished
    bool done;
    Waits waits;
    const char* what;  // what it waits at, for the report
    Site site;
    unsigned mask;  // of a warp collective; number of a named barrier
    Perform perform;
    void* brought;
    const void* key;
};

struct Named {
    unsigned expected, arrived;
    checks::Clock clock;
};

struct Warp {
    unsigned live, arrived;  // lanes that have not exited; lanes that wait in a collective
};

struct Block {
    Thread threads[MAX_THREADS];
    Warp warps[MAX_THREADS / WARP];
    Named named[16];
    unsigned size, live, arrived, votes, result;
    unsigned ready[MAX_THREADS], head, count;  // a ring of the threads that can run
    uint64_t random;
};

static Block block;
unsigned running_thread;
static Fiber fibers[MAX_THREADS];
static Fiber* spare[MAX_THREADS];  // fibers whose loop waits for work
static unsigned spares, started;
static Fiber* running;
static Context host;
static char *stacks, *shared_memory;
static size_t shared_size;
static Launch* launch;
static const Kernel* kernel;
static bool failed;

static Thread& current() { return block.threads[running_thread]; }
unsigned thread_number() { return running_thread; }
unsigned live_lanes() { return block.warps[running_thread / WARP].live; }
void* dynamic_shared() { return shared_memory; }
size_t dynamic_shared_size() { return shared_size; }
char* static_shared() { return kernel->shared_begin; }
size_t static_shared_size() { return kernel->shared_end - kernel->shared_begin; }

// ---------------------------------------------------------------- errors

static void append(const char* format, va_list values) {
    size_t used = strnlen(launch->message, launch->message_size);
    vsnprintf(launch->message + used, launch->message_size - used, format, values);
}
static void say(const char* format, ...) {
    va_list values;
    va_start(values, format);
    append(format, values);
    va_end(values);
}

/// " at file:line"; a place that is known by its address only is left for the caller to look up.
static void say_site(Site site) {
    if (!site.file) return site.line ? say("@{%x}", unsigned(site.line)) : void();
    const char* slash = strrchr(site.file, '/');
    say(" at %s:%d", slash ? slash + 1 : site.file, site.line);
}

[[noreturn]] static void abandon() {
    failed = true;
    Context lost;
    switch_to(lost, host);
    abort();  // never: nobody comes back to an abandoned fiber
}

void fail(Site site, const char* format, ...) {
    va_list values;
    va_start(values, format);
    append(format, values);
    va_end(values);
    const uint3 b = blockIdx, t = current().index;
    say("\n  in block (%u, %u, %u), thread (%u, %u, %u)", b.x, b.y, b.z, t.x, t.y, t.z);
    say_site(site);
    abandon();
}

static bool same_wait(const Thread& a, const Thread& b) {
    return a.waits == b.waits && a.what == b.what && a.site.line == b.site.line && a.mask == b.mask && !a.done &&
           !b.done;
}

static void describe_waits() {
    for (unsigned i = 0, end; i < block.size; i = end) {
        const Thread &t = block.threads[i], *last = &t;
        for (end = i + 1; end < block.size && same_wait(t, block.threads[end]); ++end) last = &block.threads[end];
        if (t.done || t.waits == Waits::no) continue;
        say("\n  thread%s (%u, %u, %u)", end > i + 1 ? "s" : "", t.index.x, t.index.y, t.index.z);
        if (end > i + 1) say(" to (%u, %u, %u)", last->index.x, last->index.y, last->index.z);
        say(": %s", t.what);
        if (t.waits == Waits::warp) say(" of lanes 0x%08x", t.mask);
        if (t.waits == Waits::named) say(" %u of %u threads", t.mask, block.named[t.mask].expected);
        if (t.waits == Waits::key) {
            char text[128];
            describe_barrier(t.key, text, sizeof text);
            say(" %s", text);
        }
        say_site(t.site);
    }
    unsigned exited = block.size - block.live;
    if (exited) say("\n  %u of %u threads have exited", exited, block.size);
}

[[noreturn]] static void deadlock() {
    say("deadlock in block (%u, %u, %u): no thread can go on", blockIdx.x, blockIdx.y, blockIdx.z);
    describe_waits();
    abandon();
}

// ---------------------------------------------------------------- the schedule

static void make_ready(unsigned thread) {
    block.threads[thread].waits = Waits::no;
    block.ready[(block.head + block.count++) % MAX_THREADS] = thread;
}

static uint64_t draw() {  // xorshift64*
    uint64_t& x = block.random;
    x ^= x >> 12, x ^= x << 25, x ^= x >> 27;
    return x * 0x2545F4914F6CDD1Dull >> 32;
}

/// The next thread to run; MAX_THREADS if none can.
static unsigned pick() {
    if (!block.count) return MAX_THREADS;
    unsigned& first = block.ready[block.head];
    if (launch->seed) {
        unsigned& other = block.ready[(block.head + draw() % block.count) % MAX_THREADS];
        unsigned kept = first;
        first = other, other = kept;
    }
    unsigned chosen = first;
    block.head = (block.head + 1) % MAX_THREADS;
    block.count--;
    return chosen;
}

static void become(unsigned thread) {
    running_thread = thread;
    threadIdx = block.threads[thread].index;
}

static void thread_exits();

/// A fiber's loop: runs threads from start to end; where the next thread has a fiber of its own, gives way to it.
static void work() {
    for (;;) {
        Thread& thread = current();
        thread.fiber = running;
        kernel->run(kernel->arguments);
        exit_bulk();
        thread.fiber = nullptr;
        thread_exits();
        unsigned next = pick();
        Fiber* self = running;
        if (next == MAX_THREADS) {
            if (block.live) deadlock();
            spare[spares++] = self;
            switch_to(self->context, host);  // the block is done; a later one wakes this fiber
        } else {
            become(next);
            if (Fiber* other = block.threads[next].fiber) {
                spare[spares++] = self;
                running = other;
                switch_to(self->context, other->context);
            }
        }
    }
}

static Fiber* take_fiber() {
    if (spares) return spare[--spares];
    Fiber* fiber = &fibers[started];
    fiber->stack = stacks + started * (STACK + GUARD) + GUARD;
    prepare(fiber->context, fiber->stack, work);
    started++;
    return fiber;
}

/// Gives the processor away until this thread is made ready and picked.
static void give_way() {
    unsigned next = pick();
    if (next == MAX_THREADS) deadlock();
    if (next == running_thread) return;
    Fiber* self = running;
    become(next);
    Fiber* other = block.threads[next].fiber;
    running = other ? other : take_fiber();
    switch_to(self->context, running->context);
}

static void wait(Waits waits, const char* what, unsigned mask, Site site) {
    Thread& thread = current();
    thread.waits = waits, thread.what = what, thread.mask = mask, thread.site = site;
}

void yield(Site) {
    make_ready(running_thread);
    give_way();
}

void park(const char* what, const void* key, Site site) {
    wait(Waits::key, what, 0, site);
    current().key = key;
    give_way();
}

void wake(const void* key) {
    for (unsigned i = 0; i < block.size; ++i)
        if (block.threads[i].waits == Waits::key && block.threads[i].key == key) make_ready(i);
}

// ---------------------------------------------------------------- barriers of the block

static void check_same_barrier() {
    const Thread* first = nullptr;
    for (unsigned i = 0; i < block.size; ++i) {
        const Thread& thread = block.threads[i];
        if (thread.done) continue;
        if (!first) first = &thread;
        if (thread.site.line != first->site.line || thread.site.file != first->site.file ||
            thread.what != first->what) {
            say("divergent barrier in block (%u, %u, %u): its threads wait at different places", blockIdx.x, blockIdx.y,
                blockIdx.z);
            describe_waits();
            abandon();
        }
    }
}

static void release_block() {
    if (!block.arrived || block.arrived != block.live) return;
    check_same_barrier();
    checks::synchronise_block();
    block.result = block.votes;
    block.arrived = block.votes = 0;
    for (unsigned i = 0; i < block.size; ++i)
        if (!block.threads[i].done) make_ready(i);
}

unsigned block_barrier(const char* what, bool vote, Site site) {
    wait(Waits::block, what, 0, site);
    block.arrived++;
    block.votes += vote;
    release_block();
    give_way();
    return block.result;
}

void named_barrier(unsigned id, unsigned threads, bool wait_for_it, Site site) {
    if (id >= 16) fail(site, "barrier %u: a block has 16 barriers, 0 to 15", id);
    if (!threads) threads = (block.size + WARP - 1) / WARP * WARP;
    if (threads % WARP) fail(site, "barrier %u of %u threads: not a multiple of %u", id, threads, WARP);
    Named& barrier = block.named[id];
    if (barrier.arrived && barrier.expected != threads)
        fail(site, "barrier %u of %u threads: others at it expect %u", id, threads, barrier.expected);
    barrier.expected = threads;
    barrier.arrived++;
    checks::release(running_thread, barrier.clock);
    if (wait_for_it) wait(Waits::named, "barrier", id, site);
    if (barrier.arrived == threads) {
        barrier.arrived = 0;
        for (unsigned i = 0; i < block.size; ++i) {
            if (block.threads[i].waits != Waits::named || block.threads[i].mask != id) continue;
            checks::acquire(i, barrier.clock);
            make_ready(i);
        }
        checks::clear(barrier.clock);
    }
    if (wait_for_it) give_way();
}

// ---------------------------------------------------------------- collectives of a warp

/// Performs and releases the group of `mask` if all of its live lanes are there.
static void release_warp(unsigned warp, unsigned mask) {
    Warp& w = block.warps[warp];
    unsigned group = mask & w.live;
    if ((w.arrived & group) != group) return;
    Thread* lanes = &block.threads[warp * WARP];
    const Thread* first = nullptr;
    void* brought[WARP] = {};
    for (unsigned i = 0; i < WARP; ++i) {
        if (!(group >> i & 1)) continue;
        if (lanes[i].mask != mask) return;
        if (!first) first = &lanes[i];
        if (lanes[i].perform != first->perform) {
            say("divergent warp in block (%u, %u, %u): its lanes wait in different collectives", blockIdx.x, blockIdx.y,
                blockIdx.z);
            describe_waits();
            abandon();
        }
        brought[i] = lanes[i].brought;
    }
    if (first->perform) first->perform(brought, WARP);
    else checks::synchronise_warp(warp, group);  // of all collectives __syncwarp alone orders memory
    w.arrived &= ~group;
    for (unsigned i = 0; i < WARP; ++i)
        if (group >> i & 1) make_ready(warp * WARP + i);
}

void warp_collective(const char* what, unsigned mask, Perform perform, void* mine, Site site) {
    unsigned lane = running_thread % WARP, warp = running_thread / WARP;
    if (!(mask >> lane & 1)) fail(site, "%s: the mask 0x%08x does not name lane %u, which calls it", what, mask, lane);
    wait(Waits::warp, what, mask, site);
    current().perform = perform;
    current().brought = mine;
    block.warps[warp].arrived |= 1u << lane;
    release_warp(warp, mask);
    give_way();
}

static void thread_exits() {
    Thread& thread = current();
    thread.done = true;
    block.live--;
    Warp& warp = block.warps[running_thread / WARP];
    warp.live &= ~(1u << running_thread % WARP);
    for (unsigned left = warp.arrived, i; left; left &= left - 1) {
        i = __builtin_ctz(left);
        const Thread& other = block.threads[running_thread / WARP * WARP + i];
        if (warp.arrived >> i & 1) release_warp(running_thread / WARP, other.mask);
    }
    release_block();
}

// ---------------------------------------------------------------- a launch

static void on_fault(int, siginfo_t* info, void*) {
    fail({}, "segmentation fault at address %p (a stray pointer, a misaligned vector, or a stack of more than %zu KB)",
         info->si_addr, STACK >> 10);
}

/// Turns a fault of the kernel into an error of the launch.
struct FaultGuard {
    struct sigaction before[2];
    stack_t stack_before;
    static constexpr size_t SIZE = 64 << 10;
    FaultGuard() {
        static char* memory = static_cast<char*>(malloc(SIZE));
        stack_t own = {};
        own.ss_sp = memory, own.ss_size = SIZE;
        sigaltstack(&own, &stack_before);
        struct sigaction action = {};
        action.sa_sigaction = on_fault;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
        sigaction(SIGSEGV, &action, &before[0]);
        sigaction(SIGBUS, &action, &before[1]);
    }
    ~FaultGuard() {
        sigaction(SIGSEGV, &before[0], nullptr);
        sigaction(SIGBUS, &before[1], nullptr);
        sigaltstack(&stack_before, nullptr);
    }
};

static void prepare_stacks() {
    if (stacks) return;
    size_t bytes = MAX_THREADS * (STACK + GUARD);
    stacks = static_cast<char*>(
        mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (stacks == MAP_FAILED) abort();
    for (unsigned i = 0; i < MAX_THREADS; ++i) mprotect(stacks + i * (STACK + GUARD), GUARD, PROT_NONE);
}

static void prepare_shared(size_t bytes) {
    static size_t capacity;
    if (bytes > capacity) {
        free(shared_memory);
        shared_memory = static_cast<char*>(aligned_alloc(1024, (bytes + 1023) / 1024 * 1024));
        capacity = bytes;
    }
    shared_size = bytes;
}

static void run_block() {
    memset(kernel->shared_begin, 0xff, kernel->shared_end - kernel->shared_begin);
    memset(shared_memory, 0xff, shared_size);
    for (Named& barrier : block.named) barrier.arrived = 0;
    block.live = block.size;
    block.arrived = block.votes = block.head = block.count = 0;
    for (unsigned i = 0; i < block.size; ++i) {
        Thread& thread = block.threads[i];
        thread.fiber = nullptr;
        thread.done = false;
        make_ready(i);
    }
    for (unsigned w = 0; w * WARP < block.size; ++w) {
        unsigned lanes = block.size - w * WARP;
        block.warps[w] = {lanes < WARP ? (1u << lanes) - 1 : ~0u, 0};
    }
    forget_copies(block.size);
    forget_bulk(block.size);
    forget_products(block.size);
    checks::begin_block();
    become(pick());
    running = take_fiber();
    switch_to(host, running->context);
}

static void run_grid() {
    const uint32_t* grid = launch->grid;
    for (uint32_t z = 0; z < grid[2]; ++z)
        for (uint32_t y = 0; y < grid[1]; ++y)
            for (uint32_t x = 0; x < grid[0]; ++x) {
                blockIdx = {x, y, z};
                run_block();
                if (failed) return;
            }
}

int run(Launch& the_launch, const Kernel& the_kernel) {
    launch = &the_launch, kernel = &the_kernel;
    const uint32_t *g = launch->grid, *b = launch->block;
    gridDim = {g[0], g[1], g[2]}, blockDim = {b[0], b[1], b[2]};
    block.size = b[0] * b[1] * b[2];
    for (unsigned i = 0; i < block.size; ++i) block.threads[i].index = {i % b[0], i / b[0] % b[1], i / (b[0] * b[1])};
    block.random = launch->seed * 0x9E3779B97F4A7C15ull | 1;
    failed = false;
    prepare_stacks();
    prepare_shared(launch->shared);
    checks::begin_launch(*launch, *kernel, block.size, stacks, MAX_THREADS * (STACK + GUARD));
    {
        FaultGuard guard;
        run_grid();
    }
    checks::end_launch(*launch);
    if (failed) spares = started = 0;  // abandoned fibers start anew
    return failed;
}

}  // namespace emulator
