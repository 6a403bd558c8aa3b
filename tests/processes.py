"""A group of processes on this machine, one per device: started once, always ended."""

import multiprocessing
import os
import tempfile
import time
import traceback
from datetime import timedelta

import torch
import torch.distributed as dist


class Processes:
    """``run`` calls a function, importable by name, in each of them; no call outlasts its limit."""

    def __init__(self, size, backend="gloo"):
        self.size, self.backend = size, backend
        self._workers = []

    def _start(self):
        context = multiprocessing.get_context("spawn")
        self._folder = tempfile.TemporaryDirectory()
        for rank in range(self.size):
            ours, theirs = context.Pipe()
            store = f"file://{self._folder.name}/store"
            arguments = (theirs, rank, self.size, store, self.backend)
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self._workers.append((process, ours))

    def run(self, function, *args, seconds=120):
        if not self._workers:
            self._start()
        for _, pipe in self._workers:
            pipe.send((function, args))
        deadline = time.monotonic() + seconds
        results, errors = [], []
        for rank, (_, pipe) in enumerate(self._workers):
            if not pipe.poll(max(0.1, deadline - time.monotonic())):
                errors.append(f"rank {rank} has not answered after {seconds} s")
                break
            try:
                ok, answer = pipe.recv()
            except EOFError:
                ok, answer = False, f"rank {rank} has died"
            (results if ok else errors).append(answer)
        if errors:
            self.end()  # what they wait for may never come
            raise AssertionError("\n".join(errors))
        return results

    def end(self):
        for process, pipe in self._workers:
            pipe.close()
            process.kill()
            process.join()
        if self._workers:
            self._folder.cleanup()
        self._workers = []


def _serve(pipe, rank, size, store, backend):
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    if "nccl" in backend:
        torch.cuda.set_device(rank)
    dist.init_process_group(
        backend, init_method=store, rank=rank, world_size=size, timeout=timedelta(seconds=60)
    )
    while True:
        try:
            function, args = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((True, function(*args)))
        except BaseException:
            pipe.send((False, f"rank {rank}: {traceback.format_exc()}"))
