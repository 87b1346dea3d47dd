"""A TCP connection that tests can cut without a word: a proxy on loopback, in threads of its own.

While it is cut nothing gets through, either way, and nobody is told: as with a cable that was pulled. New
connections are taken and go nowhere. Mended, it breaks all of these and serves new ones.
"""

import contextlib
import socket
import threading

CHUNK_BYTES = 65_536


class TcpWire:
    """Leads from `address` to HOST:PORT `target`; `close` it."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._whole = threading.Event()
        self._whole.set()
        self._closed = False
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self._whole.clear()

    def mend(self) -> None:
        if not self._whole.is_set():
            self._break_all()
            self._whole.set()

    def close(self) -> None:
        self._closed = True
        self._listener.close()
        self._break_all()
        self._whole.set()

    def _break_all(self) -> None:
        with self._lock:
            sockets, self._sockets = self._sockets, []
        for end in sockets:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while not self._closed:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self._sockets.append(near)
            threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        with near:
            self._whole.wait()
            try:
                far = socket.create_connection(self._target)
            except OSError:
                return
            with far:
                with self._lock:
                    self._sockets.append(far)
                other = threading.Thread(target=self._copy, args=(far, near), daemon=True)
                other.start()
                self._copy(near, far)
                other.join()

    def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(CHUNK_BYTES):
                self._whole.wait()
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
