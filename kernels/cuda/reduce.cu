// The second pass of a split sum: out[i] = f(sum over s of scratch[s, i] + bias[i1]), in the order of s.
//
// A thread owns elements of the result, the last axis side by side. scratch holds [splits, result in canonical order].
#include "conv.cuh"

template <class R> __global__ void __launch_bounds__(256, 2) reduce_splits(const __grid_constant__ Splits a) {
    using A = computed<R>;
    const A* parts = static_cast<const A*>(a.scratch);
    const int64_t total = a.extent[0] * a.extent[1] * a.extent[2] * a.extent[3] * a.extent[4];
    for (int64_t flat = thread_number(); flat < total; flat += thread_count()) {
        A sum = A(0);
        for (int s = 0; s < a.splits; ++s) sum += parts[s * total + flat];
        int64_t rest = flat, offset = 0;
        int place[5];
        for (int axis = 4; axis > 0; --axis) {
            place[axis] = take(rest, a.extent[axis]);
            offset += place[axis] * a.stride[axis];
        }
        sum += bias_of<A>(a.bias, place[1] * a.bs, a.bt);
        static_cast<R*>(a.out)[offset + rest * a.stride[0]] = narrow<R>(activate(a.activation, sum));
    }
}
