"""A seat in a process of its own, stopped while the others run.

Idle threads of one library spin and slow the next one in the same process several times over; a
stopped process does not. It also means that a crash or an endless loop costs one figure, not the run.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
import subprocess
import sys
import tempfile
from typing import IO, Any

from fastconv.benchmarks.peers import Absent, Refused

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
CAN_STOP = hasattr(signal, "SIGSTOP")


class Died(Exception):
    """The process ended or had to be ended; the message says how."""


class ProcessSeat:
    """Forwards every question to a `Seat` in a child process."""

    def __init__(self, name: str, threads: int | None = None):
        self.name, self.threads = name, threads
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Begin a fresh process, in a session of its own so that a Ctrl-C reaches the parent alone."""
        self.close()
        self.messages = tempfile.TemporaryFile()  # noqa: SIM115
        environment = dict(os.environ)
        if self.threads is not None:
            environment |= dict.fromkeys(THREAD_VARIABLES, str(self.threads))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fastconv.benchmarks.process", self.name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.messages,
            env=environment, start_new_session=True,
        )  # fmt: skip

    def ask(self, method: str, *args: Any, timeout: float | None = None) -> Any:
        """Call a method of the seat over there.

        Raises
        ------
        Died
            Where no answer came: the process crashed, or took longer than `timeout` seconds and was ended.
        """
        if self.process is None:
            self.start()
        assert self.process is not None
        assert self.process.stdin is not None
        self.resume()
        try:
            pickle.dump((method, args), self.process.stdin)
            self.process.stdin.flush()
            ok, answer = self._answer(timeout)
        except TimeoutError:
            self._end()
            raise Died(f"{method} took longer than {timeout:g} s") from None
        except (EOFError, OSError, pickle.UnpicklingError):
            raise Died(f"its process ended with status {self._end()}") from None
        if ok:
            return answer
        raise answer

    def _answer(self, timeout: float | None) -> tuple[bool, Any]:
        assert self.process is not None
        assert self.process.stdout is not None
        if timeout is not None and not select.select([self.process.stdout], [], [], timeout)[0]:
            raise TimeoutError
        answer: tuple[bool, Any] = pickle.load(self.process.stdout)
        return answer

    def pause(self) -> None:
        """Stop the process; returns once it stands still."""
        self._signal("SIGSTOP")
        if CAN_STOP and hasattr(os, "waitid") and self.process is not None and self.process.poll() is None:
            os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        self._signal("SIGCONT")

    def _signal(self, name: str) -> None:
        if CAN_STOP and self.process is not None and self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(getattr(signal, name))

    def _end(self) -> str:
        """End the process, if it has not ended by itself. Its exit status and the last line that it wrote to stderr."""
        if (process := self.process) is None:
            return "unknown"
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.2)  # a crash has a status of its own
        process.kill()
        status = str(process.wait())
        self.process = None
        for stream in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                stream.close()  # type: ignore[union-attr]
        with self.messages:
            self.messages.seek(0)
            lines = self.messages.read().decode(errors="replace").strip().splitlines()
        return f"{status}: {lines[-1]}" if lines else status

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self._end()


# ---------------------------------------------------------------- the child


def serve(requests: IO[bytes], answers: IO[bytes], name: str) -> None:
    """Answer questions until the parent closes the pipe."""
    from fastconv.benchmarks.seat import Seat

    seat: Seat | None = None
    while True:
        try:
            method, args = pickle.load(requests)
        except EOFError:
            return
        try:
            seat = seat or Seat(name)
            reply = (True, seat.ask(method, *args))
        except (Absent, Refused) as error:
            reply = (False, error)
        except Exception as error:  # whatever a kernel does wrong is a figure that is missing, with this as its reason
            reply = (False, RuntimeError(f"{type(error).__name__}: {error}"))
        pickle.dump(reply, answers, protocol=5)
        answers.flush()


def _die_with_parent() -> None:
    """Have the kernel end this process with its parent, even while it is stopped (Linux)."""
    if sys.platform == "linux":
        import ctypes

        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of sys/prctl.h
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL, 0, 0, 0)


def main() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not land between the answers
    _die_with_parent()
    serve(sys.stdin.buffer, answers, sys.argv[1])


if __name__ == "__main__":
    main()
