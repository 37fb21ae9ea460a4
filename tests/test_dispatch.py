"""Which backend runs, what `plan` and `explain` promise, and how choices are kept."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import numpy as np
import pytest

import fastconv
from fastconv import BackendError, DTypeError, ShapeError
from fastconv.plan import FUNCTIONS
from fastconv.testing import cases, compare

X = np.arange(2 * 3 * 6 * 5, dtype=np.float32).reshape(2, 3, 6, 5) % 7 - 3
W = np.arange(4 * 3 * 3 * 3, dtype=np.float32).reshape(4, 3, 3, 3) % 5 - 2


def chosen(**kwargs):
    return fastconv.explain("conv2d", X, W, **kwargs).backend


def test_the_first_that_is_named_wins(monkeypatch):
    """backend=, then use_backend, then set_backend, then FASTCONV_BACKEND, then the arrays."""
    assert chosen() == "cpu"
    monkeypatch.setenv("FASTCONV_BACKEND", "reference")
    assert chosen() == "reference"
    fastconv.set_backend("cpu")
    assert chosen() == "cpu"
    with fastconv.use_backend("reference"):
        assert chosen() == "reference"
        with fastconv.use_backend("cpu"):
            assert chosen() == "cpu"
            assert chosen(backend="reference") == "reference"
        assert chosen() == "reference"
    fastconv.set_backend(None)
    assert chosen() == "reference"
    monkeypatch.setenv("FASTCONV_BACKEND", "")
    assert chosen() == "cpu"


def test_a_named_backend_never_falls_back(monkeypatch):
    for kind in [name for name, available, _ in fastconv.backends() if not available]:
        with pytest.raises(BackendError, match=kind), fastconv.use_backend(kind):
            fastconv.conv2d(X, W)
        monkeypatch.setenv("FASTCONV_BACKEND", kind)
        with pytest.raises(BackendError, match=kind):
            fastconv.conv2d(X, W)
        monkeypatch.delenv("FASTCONV_BACKEND")
    monkeypatch.setenv("FASTCONV_BACKEND", "gpu")
    with pytest.raises(BackendError, match="'gpu'"):
        fastconv.conv2d(X, W)


def test_use_backend_is_undone_by_an_error():
    with pytest.raises(ShapeError), fastconv.use_backend("reference"):
        fastconv.conv2d(X, W, stride=0)
    assert chosen() == "cpu"


def test_use_backend_is_of_this_thread():
    seen = []
    with fastconv.use_backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(chosen()))
        thread.start()
        thread.join()
    assert seen == ["cpu"]


def test_backends_tell_their_reasons():
    table = {name: (available, reason) for name, available, reason in fastconv.backends()}
    assert list(table) == ["reference", "cpu", "numba", "raw"]
    assert table["reference"][0]
    assert table["cpu"][0]
    assert all(isinstance(reason, str) and reason for _, reason in table.values())


def test_threads_agree(backend):
    """Many threads at once, the same bits from each."""
    x, w = cases.conv_floats(cases.conv("mid_5x5"), "conv_fprop")[:2]
    expected = fastconv.conv2d(x, w, padding=2, backend=backend)
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(fastconv.conv2d(x, w, padding=2, backend=backend)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    for result in results:
        compare.same_bits(result, expected, "conv2d in threads")


# ---------------------------------------------------------------- calls that repeat one of before


def twice(*args, **kwargs):
    """The second of two equal calls, which goes straight to the launch of the first."""
    first = fastconv.conv2d(*args, **kwargs)
    second = fastconv.conv2d(*args, **kwargs)
    assert not np.shares_memory(first, second)
    np.testing.assert_array_equal(first, second)
    return second


def test_a_repeated_call_reads_the_values_of_its_own_arrays():
    for scale in (1, 2, -3):
        expected = fastconv.conv2d(scale * X, W, padding=1, backend="reference")
        np.testing.assert_array_equal(twice(scale * X, W, padding=1), expected)


@pytest.mark.parametrize(
    "options",
    [{"stride": True}, {"stride": 1.0}, {"stride": (1, True)}, {"padding": ((0, 0), (0, False))}, {"groups": 1.0}],
)
def test_a_repeated_call_refuses_what_only_equals(options):
    plain = {"stride": 1, "padding": 0, "groups": 1}
    for known in (plain, {**plain, "stride": (1, 1)}, {**plain, "padding": ((0, 0), (0, 0))}):
        twice(X, W, **known)
    with pytest.raises(fastconv.FastconvError):
        fastconv.conv2d(X, W, **{**plain, **options})


def test_a_repeated_call_sees_how_its_arrays_lie():
    """Equal shapes and dtypes, but other strides, byte orders, alignments and types."""
    expected = twice(X, W)
    raw = np.zeros(X.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(X.shape)
    raw[...] = X
    turned = np.ascontiguousarray(X.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    for view in (X[..., ::-1], X.astype(">f4"), raw, turned, X.view(np.memmap)):
        right = fastconv.conv2d(view, W, backend="reference")
        np.testing.assert_array_equal(twice(view, W), right)
    np.testing.assert_array_equal(twice(X, W), expected)
    with pytest.raises(DTypeError):
        fastconv.conv2d(np.ma.masked_array(X), W)


def test_a_repeated_call_asks_which_backend_is_named(monkeypatch):
    twice(X, W)
    (missing,) = [name for name, available, _ in fastconv.backends() if not available][:1]
    with pytest.raises(BackendError), fastconv.use_backend(missing):
        fastconv.conv2d(X, W)
    monkeypatch.setenv("FASTCONV_BACKEND", missing)
    with pytest.raises(BackendError):
        fastconv.conv2d(X, W)


# ---------------------------------------------------------------- explain and show_config


def test_explain(backend):
    """It names the backend, the algorithm and the reason, and computes nothing."""
    told = fastconv.explain("conv2d", X, W, padding=1, backend=backend)
    assert told.backend == backend
    assert told.op == "conv_fprop"
    assert told.algorithm
    assert told.why
    assert isinstance(told.config, dict)
    assert told.workspace >= 0
    for part in (backend, told.algorithm, told.why, str(told.problem)):
        assert part in str(told)


def ones(*shape):
    return np.ones(shape, np.float32)


CALLS = {
    "conv": (X, W),
    "conv_dgrad": (ones(2, 4, 4, 3), W, X.shape),
    "conv_wgrad": (ones(2, 4, 4, 3), X, W.shape),
    "conv_transpose": (X, ones(3, 2, 2, 2)),
    "bias_grad": (X,),
    "max_pool": (X, 2),
    "max_pool_dgrad": (ones(2, 3, 3, 2), X, 2),
    "avg_pool": (X, 2),
    "avg_pool_dgrad": (ones(2, 3, 3, 2), X.shape, 2),
    "lp_pool": (X, 2, 2),
    "adaptive_max_pool": (X, 2),
    "adaptive_avg_pool": (X, 2),
    "global_max_pool": (X,),
    "global_avg_pool": (X,),
    "global_lp_pool": (X,),
    "max_unpool": (X, np.arange(X.size).reshape(X.shape) % 30, 2),
    "correlate": (X[0, 0], W[0, 0]),
    "convolve": (X[0, 0], W[0, 0]),
    "correlate2d": (X[0, 0], W[0, 0], "same", "wrap"),
    "convolve2d": (X[0, 0], W[0, 0], "full", "fill", 2),
}


@pytest.mark.parametrize("name", CALLS)
def test_plan_and_explain_take_every_function(backend, name):
    """The arguments are the function's own; a plan's result is the function's, bit for bit."""
    public = name if name in FUNCTIONS else f"{name}2d"
    public = public if public in FUNCTIONS else "2d_".join(name.rsplit("_", 1))
    args = CALLS[name]
    assert fastconv.explain(public, *args, backend=backend).backend == backend
    arrays = [value for value in args if isinstance(value, np.ndarray)]
    expected = getattr(fastconv, public)(*args, backend=backend)
    p = fastconv.plan(public, *args, backend=backend)
    compare.same_bits(p(*arrays), expected, public)
    out = np.full_like(expected, 99)
    assert p(*arrays, out=out) is out
    compare.same_bits(out, expected, public)


def test_every_public_function_can_be_planned():
    missing = {
        name
        for name in fastconv.__all__
        if name.startswith(("conv", "max_", "avg_", "lp_", "adaptive", "global", "corr"))
    }
    missing -= {name for name in missing if name.endswith("_vjp")}
    assert missing <= set(FUNCTIONS)


def test_plan_refuses_another_geometry(backend):
    """Shapes, dtypes and strides are part of the plan."""
    p = fastconv.plan("conv2d", X, W, padding=1, backend=backend)
    for x in (X[:1], X.astype(np.float64), X[..., ::-1], np.asfortranarray(X)):
        with pytest.raises(ShapeError, match="make another plan"):
            p(x, W)
    with pytest.raises((ShapeError, DTypeError)):
        p(X)
    with pytest.raises(ShapeError):
        p(X, W, out=np.empty((2, 4, 6, 6), np.float32))
    with pytest.raises(DTypeError):
        p(X, W, out=np.empty((2, 4, 6, 5), np.float64))


def test_plan_raises_where_it_is_made():
    with pytest.raises(ShapeError, match="no op 'conv4d'"):
        fastconv.plan("conv4d", X, W)
    with pytest.raises(DTypeError, match="no op"):
        fastconv.plan(fastconv.conv2d, X, W)
    with pytest.raises(ShapeError, match="groups=2"):
        fastconv.plan("conv2d", X, W, groups=2)
    with pytest.raises(DTypeError, match="colour"):
        fastconv.plan("conv2d", X, W, colour="red")
    with pytest.raises(DTypeError, match="'w'"):
        fastconv.explain("conv2d", X)
    with pytest.raises(BackendError):
        fastconv.plan("conv2d", X, W, backend="gpu")


@pytest.mark.parametrize("name", ["dense", "depthwise", "pointwise", "grouped", "mid_3x3", "mid_1x1", "mid_depthwise"])
def test_prepared_weights(backend, name):
    """The same bits with weights kept in the kernel's form; other weights still count for themselves."""
    problem = cases.conv(name)
    x, w, _ = cases.conv_floats(problem, "conv_fprop")
    window = problem.window
    arguments = {"stride": window.stride, "padding": window.pad, "groups": problem.groups, "backend": backend}
    p = fastconv.plan("conv2d", x, w, **arguments)
    plain, other = p(x, w), p(x, -w)
    assert p.prepare(w) is p
    compare.same_bits(p(x, w), plain, name)
    compare.same_bits(p(x, -w), other, name)
    compare.same_bits(p.prepare(-w)(x, w), plain, name)


def test_prepare_refuses():
    p = fastconv.plan("conv2d", X, W)
    with pytest.raises(ShapeError, match="geometry"):
        p.prepare(W[:2])
    with pytest.raises(ShapeError, match="no weights"):
        fastconv.plan("max_pool2d", X, 2).prepare(W)


def test_plan_of_pooling_with_indices(backend):
    p = fastconv.plan("max_pool2d", X, 2, return_indices=True, backend=backend)
    y, indices = p(X)
    expected, at = fastconv.max_pool2d(X, 2, return_indices=True, backend="reference")
    compare.equal(y, expected, "plan")
    compare.equal(indices, at, "plan")


def test_show_config(capsys):
    fastconv.show_config()
    printed = capsys.readouterr().out
    for word in ("fastconv", "numpy", "numba", "reference", "cpu", "raw", "cache"):
        assert word in printed


# ---------------------------------------------------------------- tuning


def test_autotune_modes(monkeypatch):
    from fastconv import tuning

    assert tuning.autotune() == "heuristic"
    monkeypatch.setenv("FASTCONV_AUTOTUNE", "off")
    assert tuning.autotune() == "off"
    fastconv.set_autotune("measure")
    assert tuning.autotune() == "measure"
    for wrong in ("fast", 1):
        with pytest.raises(ShapeError):
            fastconv.set_autotune(wrong)
    fastconv.set_autotune(None)
    monkeypatch.setenv("FASTCONV_AUTOTUNE", "always")
    with pytest.raises(ShapeError, match="'always'"):
        tuning.autotune()


@pytest.mark.parametrize("mode", ["off", "heuristic", "measure"])
@pytest.mark.parametrize("name", ["dense", "mid_1x1", "mid_depthwise"])
def test_every_mode_is_right(backend, name, mode, monkeypatch, tmp_path):
    from fastconv.testing import selftest

    monkeypatch.setenv("FASTCONV_CACHE_DIR", str(tmp_path))
    fastconv.set_autotune(mode)
    for op in ("conv_fprop", "conv_dgrad", "conv_wgrad"):
        selftest.check_conv(backend, op, cases.conv(name))


@pytest.mark.parametrize("content", [b"", b"not json", b'{"key": 1}', b"[1, 2]", b"\xff\xfe\x00"])
def test_a_corrupt_table_of_choices_is_ignored(content, monkeypatch, tmp_path, caplog):
    """One warning in the log, no error, and the next choice is kept again."""
    from fastconv import tuning

    monkeypatch.setenv("FASTCONV_CACHE_DIR", str(tmp_path))
    choices = tuning.Choices("test")
    choices.path.write_bytes(content)
    assert choices.get("key") is None
    assert choices.get("key") is None
    assert len([record for record in caplog.records if record.name == "fastconv"]) == 1
    choices.put("key", "gemm")
    assert choices.get("key") == "gemm"


def test_an_unwritable_cache_is_ignored(monkeypatch, tmp_path, caplog):
    from fastconv import tuning

    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    monkeypatch.setenv("FASTCONV_CACHE_DIR", str(blocked))
    tuning.Choices("test").put("key", "gemm")
    assert tuning.Choices("test").get("key") is None
    assert "fastconv" in {record.name for record in caplog.records}


RUN = "import numpy as np, fastconv; print(fastconv.conv2d(np.ones((1, 4, 9, 9)), np.ones((4, 4, 3, 3))).sum())"


def test_an_unwritable_cache_folder_does_not_stop_a_call(tmp_path):
    """The library computes, prints nothing of its own, and writes nowhere else."""
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    environment = dict(os.environ, FASTCONV_CACHE_DIR=str(blocked / "below"))
    done = subprocess.run([sys.executable, "-c", RUN], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(float(36 * 4 * 49))]
