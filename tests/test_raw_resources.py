"""The compile gate: every kernel that the `raw` backend ships, on every architecture, read off its machine code."""

from __future__ import annotations

import pytest

from fastconv.compiler import cuda
from fastconv.compiler.cuda import ARCHITECTURES, Instance
from fastconv.errors import BackendError
from fastconv.testing import resources

REGISTERS = 65536  # of a multiprocessor, and of one block at most
FILES = resources.by_file(resources.shipped())


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("file", FILES)
def test_compiles_without_spills(file, arch):
    """No register of any instance overflows into local memory, and what its host side claims of it holds."""
    instances = resources.for_arch(FILES[file], arch)
    for found in resources.measure(instances, arch) if instances else ():
        claims = resources.claims(found.instance)
        assert found.spills == 0, f"{found.instance} on {arch}: {found.spills} bytes of stack and local memory"
        assert found.registers <= claims.get("registers", 255), f"{found.instance} on {arch}: {found.registers}"
        assert set(claims.get("sass", ())) <= found.instructions, f"{found.instance} on {arch}: {found.instructions}"
        assert found.shared <= 48 * 1024


def test_every_source_is_shipped():
    """No kernel file lies unused: each has an instance that the host side asks for."""
    assert {path.name for path in cuda.source_folder().glob("*.cu")} == set(FILES)


def test_the_page_shows_every_instance():
    """kernels/README.md was written from these sources: `python -m fastconv.testing.resources --write`."""
    page = (cuda.source_folder().parent / "README.md").read_text()
    missing = [str(instance) for instances in FILES.values() for instance in instances if f"`{instance}`" not in page]
    assert not missing


def test_a_compile_error_is_told():
    with pytest.raises(BackendError, match=r"does not compile for sm_80[\s\S]*no_such_kernel"):
        cuda.cubins((Instance(next(iter(FILES)), "no_such_kernel"),), "sm_80")


def test_a_spill_is_seen(tmp_path, monkeypatch):
    """The gate itself: an array that is indexed at run time lives in local memory, and shows."""
    (tmp_path / "spill.cu").write_text(
        "struct A { float* p; int n; };\n"
        "template <int N> __global__ void spill(const __grid_constant__ A a) {\n"
        "    float kept[N];\n"
        "    for (int i = 0; i < N; ++i) kept[i] = a.p[i * a.n];\n"
        "    a.p[threadIdx.x] = kept[threadIdx.x % N] + kept[(threadIdx.x * a.n) % N];\n"
        "}\n"
    )
    monkeypatch.setattr(cuda, "source_folder", lambda: tmp_path)
    monkeypatch.setattr(cuda, "source_digest", lambda file: "spill")
    monkeypatch.setenv("FASTCONV_CACHE_DIR", str(tmp_path / "cache"))
    (found,) = resources.measure([Instance("spill.cu", "spill", ("300",))], "sm_90a")
    assert found.spills > 0
