"""The design's arrows: who may import whom, that importing is cheap, and what every public function offers."""

from __future__ import annotations

import ast
import inspect
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastconv

ROOT = Path(fastconv.__file__).parent
REPOSITORY = ROOT.parent
OUTER = {"testing", "benchmarks", "interop", "cli", "__main__"}  # nothing imports these

#: Per part of the package, the parts it may import. What is left out may import anything public.
ARROWS = {
    "errors": set(),
    "problem": {"errors"},
    "arrays": {"errors", "problem", "gpu_arrays"},
    "gpu_arrays": {"errors"},
    "ops": {"errors", "problem", "arrays", "dispatch"},
    "dispatch": {"errors", "arrays", "gpu_arrays", "problem", "backends"},
    "vjp": {"errors", "problem", "arrays", "dispatch", "ops"},
    "plan": {"errors", "problem", "arrays", "dispatch", "ops", "backends"},
    "tuning": {"errors", "problem", "dispatch"},
    "compiler": {"errors", "tuning"},
    "backends": {"errors", "problem", "arrays", "gpu_arrays", "tuning", "compiler", "kernels"},
}
STANDARD_ONLY = {"errors", "problem"}
LAZY = {"numba", "scipy", "ml_dtypes", "torch", "jax", "cupy", "onnx", "rich", "tqdm", "matplotlib"}


def files(part: str) -> list[Path]:
    folder = ROOT / part
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [ROOT / f"{part}.py"]


def imports(path: Path, whole: bool = True) -> set[str]:
    """The dotted names that a file imports, inside functions too where `whole`."""
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if whole else outside_functions(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def outside_functions(node: ast.AST):
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef):
            yield child
            yield from outside_functions(child)


def parts(names: set[str]) -> set[str]:
    """The parts of fastconv among imported names."""
    return {name.split(".")[1] for name in names if name.startswith("fastconv.")}


@pytest.mark.parametrize("part", [part for part in ARROWS if (ROOT / part).is_dir() or (ROOT / f"{part}.py").exists()])
def test_arrows(part):
    for path in files(part):
        used = parts(imports(path)) - {part}
        assert used <= ARROWS[part], f"{path.relative_to(ROOT)} imports {sorted(used - ARROWS[part])}"


def test_every_part_has_its_place():
    """A new module of the package is either in the table of arrows or free to import anything public."""
    there = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert there <= set(ARROWS) | OUTER | {"__init__", "config"}


def test_nothing_imports_the_outer_parts():
    for path in ROOT.rglob("*.py"):
        part = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if part not in OUTER:
            assert not parts(imports(path)) & OUTER, path


@pytest.mark.parametrize("part", sorted(STANDARD_ONLY))
def test_standard_library_only(part):
    for path in files(part):
        foreign = (
            {name.split(".")[0] for name in imports(path)} - set(sys.stdlib_module_names) - {"fastconv", "__future__"}
        )
        assert not foreign, path


def test_cpu_kernels_need_numba_and_numpy_only():
    for path in (REPOSITORY / "kernels" / "numba_cpu").glob("*.py"):
        roots = {name.split(".")[0] for name in imports(path)} - set(sys.stdlib_module_names) - {"__future__"}
        assert roots <= {"numba", "numpy", "llvmlite", "fastconv"}, path
        assert parts(imports(path)) <= {"kernels"}, path


def test_dispatch_loads_backends_lazily():
    """The dispatcher names no backend module in an import statement."""
    assert {name for name in imports(ROOT / "dispatch.py") if "backends" in name} <= {
        f"fastconv.backends.base.{name}" for name in ("OPS", "Backend", "Launch")
    }


def fresh(code: str, **environment: str) -> str:
    """What a new Python process prints."""
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, env=dict(os.environ, **environment), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_is_light():
    """`import fastconv` loads NumPy and no compiler, and prints nothing."""
    printed = fresh(f"import sys, fastconv; print(sorted(set(sys.modules) & {LAZY!r}))")
    assert printed == "[]"


def test_import_is_quick():
    """Under 0.3 s beyond NumPy's own import: the best of three."""
    code = "import time, numpy; t = time.perf_counter(); import fastconv; print(time.perf_counter() - t)"
    assert min(float(fresh(code)) for _ in range(3)) < 0.3


def test_import_touches_no_cache(tmp_path):
    fresh("import fastconv", FASTCONV_CACHE_DIR=str(tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()


def test_the_library_logs_and_does_not_print():
    """`print` belongs to `show_config` and to the command line."""
    for path in ROOT.rglob("*.py"):
        if path.name in ("config.py", "cli.py", "__main__.py") or path.relative_to(ROOT).parts[0] in OUTER:
            continue
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        assert not [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"], path
    assert logging.getLogger("fastconv").level == logging.NOTSET


# ---------------------------------------------------------------- the public surface

FUNCTIONS = {name: getattr(fastconv, name) for name in fastconv.__all__ if inspect.isfunction(getattr(fastconv, name))}
TOOLS = {"backends", "explain", "plan", "set_autotune", "set_backend", "set_num_threads", "show_config",
         "use_backend"}  # fmt: skip
OPS = {name: function for name, function in FUNCTIONS.items() if name not in TOOLS}


def expected_names() -> set[str]:
    """The ops of the public contract."""
    each = (
        "conv",
        "conv_transpose",
        "max_pool",
        "avg_pool",
        "lp_pool",
        "adaptive_max_pool",
        "adaptive_avg_pool",
        "max_unpool",
    )
    names = {f"{name}{n}d{vjp}" for name in each for n in (1, 2, 3) for vjp in ("", "_vjp")}
    names |= {f"{name}{n}d_dgrad" for name in ("conv", "max_pool", "avg_pool") for n in (1, 2, 3)}
    names |= {f"conv{n}d_wgrad" for n in (1, 2, 3)}
    names |= {f"global_{kind}_pool{vjp}" for kind in ("max", "avg", "lp") for vjp in ("", "_vjp")}
    return names | {"bias_grad", "correlate", "convolve", "correlate2d", "convolve2d", "correlate_vjp"}


def test_every_op_of_the_contract_is_there():
    assert expected_names() | TOOLS <= set(FUNCTIONS)


@pytest.mark.parametrize("name", OPS)
def test_every_op_takes_backend_and_out(name):
    parameters = inspect.signature(OPS[name]).parameters
    assert "backend" in parameters
    assert "out" in parameters
    if "correlate" not in name and "convolve" not in name:
        assert parameters["layout"].default == "NCHW"
        assert parameters["layout"].kind is inspect.Parameter.KEYWORD_ONLY


@pytest.mark.parametrize("name", [name for name in OPS if name.startswith("conv") and "convolve" not in name])
def test_every_op_with_weights_takes_their_layout(name):
    parameters = inspect.signature(OPS[name]).parameters
    assert parameters["weight_layout"].default is None
    assert parameters["precision"].default is None


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_shows_an_example(name):
    assert ">>>" in (inspect.getdoc(FUNCTIONS[name]) or ""), name


@pytest.mark.parametrize("part", ["fastconv", "kernels"])
def test_files_fit_in_the_head(part):
    """A file has one subject and some hundreds of lines."""
    for path in (REPOSITORY / part).rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 900, path


def test_a_bad_first_call_is_refused_at_once():
    """It costs no compiler, in a fresh process too."""
    code = (
        "import time, numpy as np, fastconv\n"
        "t = time.perf_counter()\n"
        "try: fastconv.conv2d(np.ones((1, 3, 9, 9)), np.ones((4, 2, 3, 3)))\n"
        "except fastconv.ShapeError: print(time.perf_counter() - t)"
    )
    assert float(fresh(code)) < 0.2
