"""What ends the ranks of a run together.

torchrun's agent ends the ranks of its own node alone. Those of other nodes
would wait in a collective for as long as its timeout is, two hours in
SpeechBrain. Here every rank keeps a connection to rank 0: the kernel closes it
with the process, whatever killed that, and nothing is sent while all is well.
"""

import contextlib
import os
import signal
import socket
import struct
import sys
import threading
import time

import torch.distributed as dist

from emoq_modules.training.ranks import own_rank, world_size

_NUMBER = struct.Struct("!i")  # a message: who is dead, or
_DONE = -1
# Of a node without power nothing comes: it is asked after this many seconds,
# and given up after so many questions, each as long apart.
_PROBE_S, _PROBES = 10, 3
# For a message, before the process ends of what it is about.
_GRACE_S = 2.0


@contextlib.contextmanager
def watch_ranks():
    """Ends this process, with a message, once another rank is gone.

    To be entered by all ranks; in a run of one process it does nothing. Ranks
    are done when they leave it without an exception.

    Example
    -------
    >>> with watch_ranks():
    ...     print("trained")
    trained
    """
    if world_size() == 1:
        yield
        return
    watch = _Watch()
    try:
        yield
    except RuntimeError:
        # Perhaps a collective that broke because a rank is gone, which ends
        # this process now.
        time.sleep(_GRACE_S)
        raise
    watch.done()


class _Watch:
    """The connections of a rank: with rank 0 those to all others."""

    def __init__(self):
        self.rank = own_rank()
        self.places = [None] * world_size()
        dist.all_gather_object(self.places, (socket.gethostname(), os.getpid()))
        self._ending = threading.Lock()
        self._connections = self._connect()
        self._threads = [
            threading.Thread(target=self._wait, args=connected, daemon=True)
            for connected in self._connections.items()
        ]
        for connection in self._connections.values():
            _keep_alive(connection)
        for thread in self._threads:
            thread.start()
        # What is forked, as workers that load data, would keep them open.
        os.register_at_fork(after_in_child=self._close)
        signal.signal(signal.SIGTERM, _end_late)

    def done(self):
        """Tells the others not to wait for this rank, and ends the watch."""
        self._ending.acquire()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._tell(_DONE)
        # The interpreter should not end while they are at work.
        for thread in self._threads:
            thread.join(timeout=_GRACE_S)

    def _connect(self):
        address = [None]
        if self.rank > 0:
            dist.broadcast_object_list(address, src=0)
            connection = socket.create_connection(address[0], timeout=60)
            connection.settimeout(None)
            connection.sendall(_NUMBER.pack(self.rank))
            return {0: connection}
        with socket.create_server(("", 0), backlog=len(self.places)) as server:
            # torchrun gives an address of rank 0 that all nodes can reach.
            address[0] = os.environ["MASTER_ADDR"], server.getsockname()[1]
            dist.broadcast_object_list(address, src=0)
            connections = {}
            while len(connections) < len(self.places) - 1:
                connection, _ = server.accept()
                connections[_received(connection)] = connection
        return connections

    def _wait(self, peer, connection):
        try:
            dead = _received(connection)
        except (OSError, struct.error):
            dead = peer  # closed, or no answer
        if dead != _DONE:
            self._end(dead)

    def _end(self, dead):
        self._ending.acquire()  # for good: one message is enough
        self._tell(dead)
        host, _ = self.places[self.rank]
        if self.rank == min(
            rank
            for rank, place in enumerate(self.places)
            if place[0] == host and rank != dead
        ):
            host, process = self.places[dead]
            print(
                f"error: rank {dead} (process {process} on {host}) has ended "
                "before the run was done, so all others end too. If it says "
                "nothing above about why, it was killed, perhaps for want of "
                "memory. The same command goes on from the last checkpoint.",
                file=sys.stderr,
                flush=True,
            )
        os._exit(1)  # the main thread may be waiting for the dead

    def _tell(self, number):
        for connection in self._connections.values():
            with contextlib.suppress(OSError):
                connection.sendall(_NUMBER.pack(number))

    def _close(self):
        for connection in self._connections.values():
            connection.close()


def _received(connection):
    return _NUMBER.unpack(connection.recv(_NUMBER.size, socket.MSG_WAITALL))[0]


def _keep_alive(connection):
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _PROBE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)


def _end_late(signum, frame):
    """Leaves time for the message: torchrun ends the others of a node."""
    time.sleep(_GRACE_S)
    signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)
