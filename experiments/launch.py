"""Run a program as several processes of this machine, as a cluster would run it on several hosts.

Each process gets its own devices: on a CPU as many simulated ones as --devices says, on a machine with
GPUs the next so many of them. The first process's output is shown as it is, that of process 1 behind
"[1] ", and so on. Ctrl-C and SIGTERM are passed on to all. Where one process dies, it is named, the others
are ended, and the status is the dead one's. A cluster (srun, GKE, Cloud TPU) starts the same program without
this one.

Of the programs train, evaluate, encode and quickstart can run as several processes.

Examples:
  python -m experiments.launch --processes=2 -- \\
      python -m experiments.train --config=configs/dual_encoder/python_functions.py --workdir=runs/code
  python -m experiments.launch --processes=4 --devices=2 -- python -m experiments.evaluate --workdir=runs/code
"""

import ctypes
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO

from experiments import cli
from training import distributed

_LAST_SECONDS = 60  # that the others have to end, once one has ended with status 0
_END_SECONDS = 15  # that the others have to end by themselves, once one has died
_OUTPUT_SECONDS = (
    10  # to pass on the last lines, unless something that outlives the processes holds their pipe
)
# How a process ends since another one has: by an error that says so, or aborted by jax.
_FOLLOWED = (distributed.FOLLOWED, -signal.SIGABRT)
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Entry point of `retrievax-launch`."""
    command = cli.Command(__doc__)
    processes = command.integer("processes", 2, "How many processes.", lower_bound=1)
    devices = command.integer("devices", 1, "Devices of each process.", lower_bound=1)
    heartbeat = command.integer(
        "heartbeat", 30, "Seconds of silence after which a process counts as dead.", lower_bound=1
    )
    program = command.arguments(
        "PROGRAM", 'behind "--", what each process runs; "python" is the Python that runs this.', least=1
    )

    def launch() -> None:
        sys.exit(run(program.values, processes.value, devices.value, heartbeat.value))

    command.run(launch)


def run(program: Sequence[str], processes: int, devices: int, heartbeat: int) -> int:
    """Runs a program as several processes until all have ended; see the module's docstring.

    Returns:
      the status to exit with: 0, that of the process that died first, or 128 + the signal that killed it.

    Raises:
      UsageError: the program cannot be run.
    """
    address = f"127.0.0.1:{_free_port()}"
    program = [sys.executable, *program[1:]] if program[0] == "python" else list(program)
    with _Group() as group:
        for number in range(processes):
            variables = {
                distributed.COORDINATOR: address,
                distributed.PROCESSES: str(processes),
                distributed.PROCESS: str(number),
                distributed.HEARTBEAT: str(heartbeat),
                "JAX_COORDINATOR_BIND_ADDRESS": address,
                "JAX_NUM_CPU_DEVICES": str(devices),
                "JAX_LOCAL_DEVICE_IDS": ",".join(str(number * devices + n) for n in range(devices)),
            }
            group.start(program, _environment(os.environ, variables))
        return group.wait()


class _Group:
    """Processes that run together; signals to this one go to all of them."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen] = []
        self._readers: list[threading.Thread] = []
        self._ended: queue.SimpleQueue[int] = queue.SimpleQueue()  # numbers, in order
        self._when_stopped: tuple[int, ...] = ()  # codes that are as they should be

    def __enter__(self) -> "_Group":
        self._handlers = {n: signal.signal(n, self._pass_on) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception) -> None:
        self._kill()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def start(self, program: Sequence[str], environment: Mapping[str, str]) -> None:
        """Starts the next process, which the terminal's Ctrl-C does not reach but through this one."""
        try:
            process = subprocess.Popen(
                program,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,
            )
        except OSError as error:
            raise cli.UsageError(f"PROGRAM: {program[0]}: {error.strerror}") from None
        number = len(self._processes)
        self._processes.append(process)
        prefix = f"[{number}] ".encode() if number else b""
        for source, sink in ((process.stdout, sys.stdout.buffer), (process.stderr, sys.stderr.buffer)):
            self._readers.append(_in_thread(_copy_lines, source, sink, prefix))
        _in_thread(self._await_end, number)

    def wait(self) -> int:
        """Waits for all, ends the rest where one fails, and returns the status of the one that failed."""
        running, first, cause, deadline, done = len(self._processes), None, None, None, None
        while running:
            try:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                number = self._ended.get(timeout=left)
            except queue.Empty:
                break
            running -= 1
            code = self._processes[number].returncode
            if not code and done is None and first is None:  # the others should be about to end too
                done, deadline = number, time.monotonic() + _LAST_SECONDS
            if code and first is None:
                first, deadline = number, time.monotonic() + _END_SECONDS
            if code and cause is None and code not in _FOLLOWED:
                cause = number
                self._name(cause)
        self._kill()
        for reader in self._readers:
            reader.join(timeout=_OUTPUT_SECONDS)
        if done is not None and cause is None and (running or first is not None):
            pid = self._processes[done].pid
            _say(f"process {done} (pid {pid}) ended with status 0 before the others")
            return 1
        if first is None:
            return 0
        if cause is None:
            cause = first
            self._name(cause)
        code = self._processes[cause].returncode
        return code if code > 0 else 128 - code

    def _name(self, number: int) -> None:
        """Says which process died, and how, unless it was asked to."""
        process = self._processes[number]
        code = process.returncode
        if code not in self._when_stopped:
            how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
            _say(f"process {number} (pid {process.pid}) {how}")

    def _kill(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()

    def _await_end(self, number: int) -> None:
        self._processes[number].wait()
        self._ended.put(number)

    def _pass_on(self, signum: int, frame) -> None:
        del frame
        self._when_stopped = (-signum, 128 + signum)
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(signum)


def _say(message: str) -> None:
    """Writes a line in one piece: print can write its end apart, behind what a process says meanwhile."""
    sys.stderr.buffer.write(f"{message}\n".encode())
    sys.stderr.flush()


def _environment(own: Mapping[str, str], variables: Mapping[str, str]) -> dict[str, str]:
    flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", own.get("XLA_FLAGS", "")).strip()
    return {**own, "XLA_FLAGS": flags, "PYTHONUNBUFFERED": "1", **variables}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _copy_lines(source: IO[bytes], sink: IO[bytes], prefix: bytes) -> None:
    for line in source:
        try:
            end = b"" if line.endswith(b"\n") else b"\n"
            sink.write(prefix + line + end)  # whole: the sink has a lock
            sink.flush()
        except (BrokenPipeError, ValueError):  # nobody reads any more; the process is to go on
            continue


def _end_with_parent() -> None:
    """Asks Linux for a SIGKILL when the launcher ends, however it does."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _in_thread(function, *arguments) -> threading.Thread:
    thread = threading.Thread(target=function, args=arguments, daemon=True)
    thread.start()
    return thread


if __name__ == "__main__":
    main()
