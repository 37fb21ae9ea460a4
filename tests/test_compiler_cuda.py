"""Compiled CUDA C++ on disk: kept, found again, and compiled anew where the file is corrupt or cannot be written."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from fastconv.compiler import cuda
from fastconv.compiler.cuda import Instance

pytest.importorskip("cupy")
CODE = "template <int V> __global__ void set(int* p) { *p = V; }\n"
INSTANCES = (Instance("set.cu", "set", ("1",)), Instance("set.cu", "set", ("2",)))


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A source folder and a cache of this test's own."""
    (tmp_path / "set.cu").write_text(CODE)
    monkeypatch.setattr(cuda, "source_folder", lambda: tmp_path)
    monkeypatch.setattr(cuda, "source_digest", lambda file: "own")
    monkeypatch.setenv("FASTCONV_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


def entries(folder):
    return sorted((folder / "cache" / "cuda").glob("*"))


def test_kept_and_found(own, monkeypatch):
    cubin, symbols = cuda.cubins(INSTANCES, "sm_80")
    assert cubin.startswith(b"\x7fELF")
    assert set(symbols) == set(INSTANCES)
    assert len(set(symbols.values())) == 2
    monkeypatch.setattr(cuda, "_compile", None)  # a second compilation would fail
    assert cuda.cubins(INSTANCES, "sm_80") == (cubin, symbols)
    (entry,) = entries(own)
    assert entry.suffix == ".bin"


def test_keyed_by_architecture_and_source(own, monkeypatch):
    cuda.cubins(INSTANCES, "sm_80")
    cuda.cubins(INSTANCES, "sm_90a")
    monkeypatch.setattr(cuda, "source_digest", lambda file: "changed")
    cuda.cubins(INSTANCES, "sm_80")
    assert len(entries(own)) == 3


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 4000])
def test_a_corrupt_entry_is_compiled_anew(own, caplog, content):
    cubin, _ = cuda.cubins(INSTANCES, "sm_80")
    (entry,) = entries(own)
    entry.write_bytes(content)
    with caplog.at_level(logging.WARNING, logger="fastconv"):
        assert cuda.cubins(INSTANCES, "sm_80")[0] == cubin
    assert "corrupt" in caplog.text
    assert cuda.cubins(INSTANCES, "sm_80")[0] == cubin


def test_a_folder_that_cannot_be_written(own, caplog, monkeypatch):
    (own / "file").write_text("")
    monkeypatch.setenv("FASTCONV_CACHE_DIR", str(own / "file"))
    with caplog.at_level(logging.WARNING, logger="fastconv"):
        assert cuda.cubins(INSTANCES, "sm_80")[0].startswith(b"\x7fELF")
    assert "cannot be" in caplog.text


def test_processes_may_share_the_folder(own):
    """Four at once: all get the same code, and one whole entry is left."""
    code = (
        "import hashlib, pathlib, sys\n"
        "from fastconv.compiler import cuda\n"
        "cuda.source_folder = lambda: pathlib.Path(sys.argv[1])\n"
        "cuda.source_digest = lambda file: 'own'\n"
        "instances = tuple(cuda.Instance('set.cu', 'set', (v,)) for v in '12')\n"
        "print(hashlib.sha256(cuda.cubins(instances, 'sm_80')[0]).hexdigest())\n"
    )
    command = [sys.executable, "-c", code, str(own)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    printed = {process.communicate(timeout=120)[0] for process in running}
    assert [process.returncode for process in running] == [0] * 4
    assert len(printed) == 1
    (entry,) = entries(own)
    assert entry.suffix == ".bin"
