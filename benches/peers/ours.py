"""Drives our own binary beside the peers: a process that measures one round whenever it is told to.

`fp8-moe bench --lockstep` prints a line `{"ready": {...}}` for each case. Then every line `go` on its
standard input makes it replay a round and print `{"us": [...]}`; `next` moves to the following case; `quit`
ends it.
"""

from __future__ import annotations

import json
import queue
import subprocess
import threading
from typing import Any, Sequence


# Our rows' names, and the accumulation that each stands for: with one scale a token, vLLM's CUTLASS layer and
# torch's grouped GEMM keep their sums in the tensor cores, which ours does only when asked to.
ACCUMULATION = {"fp8-moe": "promoted", "fp8-moe-fast": "fast"}


class BinaryFailed(Exception):
    """The binary ended, said something unexpected, or took too long."""


class Lockstep:
    """One running `bench --lockstep`; `case` moves it to the case that is wanted."""

    def __init__(self, command: Sequence[str], timeout: float = 60.0):
        self.timeout = timeout
        self.current: tuple[int, str] | None = None
        self.ready: dict[str, Any] = {}
        self.process = subprocess.Popen(list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, text=True, bufsize=1)
        self.lines: queue.Queue[str | None] = queue.Queue()
        self.complaints: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()
        threading.Thread(target=self._complain, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def _complain(self) -> None:
        for line in self.process.stderr:
            self.complaints = [*self.complaints[-9:], line.rstrip()]

    def _say(self, word: str) -> None:
        try:
            self.process.stdin.write(word + "\n")
            self.process.stdin.flush()
        except OSError as error:
            raise BinaryFailed(self._last_words()) from error

    def _last_words(self) -> str:
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            pass
        return f"the binary ended ({self.process.returncode}): " + " | ".join(self.complaints[-3:])

    def _answer(self, *keys: str) -> dict[str, Any]:
        """The next JSON line with one of `keys`; anything else on standard output is passed over."""
        while True:
            try:
                line = self.lines.get(timeout=self.timeout)
            except queue.Empty:
                raise BinaryFailed(f"no answer in {self.timeout:.0f} s") from None
            if line is None:
                self.lines.put(None)  # it stays ended, whoever asks next
                raise BinaryFailed(self._last_words())
            try:
                said = json.loads(line)
            except ValueError:
                continue
            if not isinstance(said, dict):
                continue
            if said.get("error"):
                raise BinaryFailed(str(said["error"]))
            if any(key in said for key in keys):
                return said

    def case(self, tokens: int, part: str) -> dict[str, Any]:
        """Move on until the case is the wanted one; its `ready` object. Asking for the present case changes
        nothing.
        """
        while self.current != (tokens, part):
            if self.current:
                self._say("next")
            self.ready = self._answer("ready")["ready"] or {}
            self.current = (self.ready.get("tokens", tokens), self.ready.get("part", part))
            if self.ready.get("error"):
                raise BinaryFailed(str(self.ready["error"]))
        return self.ready

    def round(self) -> list[float]:
        self._say("go")
        return [float(us) for us in self._answer("us")["us"]]

    def close(self) -> None:
        try:
            self._say("quit")
            self.process.wait(timeout=10)
        except (BinaryFailed, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()


class Ours:
    """Our binary over one model and scheme. Starts a process for all cases; after a failure, one for each."""

    def __init__(self, base: Sequence[str]):
        self.base = list(base)  # the command line up to the cases
        self.running: Lockstep | None = None

    def start(self, tokens: Sequence[int], parts: Sequence[str]) -> Lockstep:
        self.close()
        self.running = Lockstep([*self.base, "--tokens", ",".join(map(str, tokens)), "--part",
                                 ",".join(parts), "--lockstep"])
        return self.running

    def case(self, tokens: int, part: str) -> dict[str, Any]:
        try:
            if self.running is not None:
                return self.running.case(tokens, part)
        except BinaryFailed:
            pass  # perhaps of an earlier case: a process of its own decides
        return self.start([tokens], [part]).case(tokens, part)

    def round(self) -> list[float]:
        if self.running is None:
            raise BinaryFailed("the binary is not running")
        try:
            return self.running.round()
        except BinaryFailed:
            self.close()
            raise

    def close(self) -> None:
        if self.running:
            self.running.close()
            self.running = None


class Dump:
    """Our binary writing its inputs and output of a small case to a safetensors file, beside what else goes
    on.
    """

    def __init__(self, binary: str, name: str, shape: Sequence[int], tokens: int, scheme: str, path: str):
        self.path = path
        # A given matrix rate, of any value, saves measuring one.
        command = [binary, "bench", "--shape", ",".join(map(str, shape)), "--tokens", str(tokens), "--scheme",
                   scheme, "--accumulation", ACCUMULATION[name], "--matrix-rate", "1", "--dump", path]
        try:
            self.process: subprocess.Popen[str] | OSError = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        except OSError as error:
            self.process = error

    def finish(self) -> None:
        """Waits until the file is there."""
        if isinstance(self.process, OSError):
            raise BinaryFailed(f"--dump: {self.process}") from self.process
        try:
            said, _ = self.process.communicate(timeout=120)
        except subprocess.TimeoutExpired as error:
            self.process.kill()
            self.process.wait()
            raise BinaryFailed(f"--dump: {error}") from error
        if self.process.returncode:
            last = said.strip().splitlines()[-3:]
            raise BinaryFailed(f"--dump ended with {self.process.returncode}: " + " | ".join(last))
