"""ggml-rpc-server as a device, behind a proxy that reads along what a program sends to it."""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from comparison.server import free_port

# of enum rpc_cmd
ALLOC_BUFFER, SET_TENSOR, SET_TENSOR_HASH, GET_DEVICE_MEMORY = 0, 6, 7, 11
# rpc_tensor: name[64] stands before the last int32
NAME_OFFSET = 8 + 4 + 8 + 16 + 16 + 4 + 64 + 4 + 80 + 8 + 8 + 8
TENSOR_SIZE = NAME_OFFSET + 64 + 4


class Proxy:
    """Passes bytes on to an rpc server and keeps what was asked of it, in order.

    `allocated` are the sizes of the buffers, `tensors` the bytes set by tensor name (inputs of graphs are
    among them), `sent` counts every byte. `free_memory`, if set, is what the device says is free.
    """

    def __init__(self, server_port: int) -> None:
        self.sent = 0
        self.free_memory: int | None = None
        self.allocated: list[int] = []
        self.tensors: dict[str, int] = {}
        self.needles: dict[str, bytes] = {}
        self.found: set[str] = set()
        self._server_port = server_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._sockets = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client = self._listener.accept()[0]
                server = socket.create_connection(("127.0.0.1", self._server_port))
                self._sockets += [client, server]
                for end in (client, server):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._requests, args=(client, server), daemon=True).start()
                threading.Thread(target=self._replies, args=(server, client), daemon=True).start()

    def _requests(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError, EOFError):
            while True:
                head = _receive(client, 9)
                command, size = struct.unpack("<BQ", head)
                body = _receive(client, size)
                self._note(command, body)
                self.sent += len(head) + len(body)
                if command == GET_DEVICE_MEMORY and self.free_memory is not None:
                    client.sendall(struct.pack("<QQQ", 16, self.free_memory, self.free_memory))
                    continue
                server.sendall(head)
                server.sendall(body)
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_WR)

    def _note(self, command: int, body: bytes) -> None:
        if command == ALLOC_BUFFER:
            self.allocated.append(struct.unpack("<IQ", body)[1])
        elif command in (SET_TENSOR, SET_TENSOR_HASH):
            name = body[NAME_OFFSET : NAME_OFFSET + 64].split(b"\0")[0].decode()
            data = body[TENSOR_SIZE + 9 :] if command == SET_TENSOR else b""
            self.tensors[name] = self.tensors.get(name, 0) + len(data)
        self.found.update(name for name, needle in self.needles.items() if needle in body)

    def _replies(self, server: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(1 << 16):
                client.sendall(data)
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_WR)

    def weights(self) -> dict[str, int]:
        """Bytes set by name, of the tensors of the file."""
        return {name: n for name, n in self.tensors.items() if name.endswith((".weight", ".bias"))}

    def blocks(self) -> list[int]:
        """The blocks of which a tensor was set."""
        return sorted({int(name.split(".")[1]) for name in self.weights() if name.startswith("blk.")})

    def close(self) -> None:
        for s in self._sockets:
            s.close()


def _receive(s: socket.socket, n: int) -> bytes:
    data = bytearray(n)
    view, got = memoryview(data), 0
    while got < n:
        k = s.recv_into(view[got:])
        if k == 0:
            raise EOFError
        got += k
    return bytes(data)


@contextlib.contextmanager
def rpc_device(tool: Path) -> Iterator[Proxy]:
    """One rpc server on the CPU, and the proxy in front of it."""
    port = free_port()
    command = [str(tool), "-H", "127.0.0.1", "-p", str(port), "-d", "CPU", "-t", "1"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            assert server.poll() is None, f"{tool} ended with {server.returncode}"
            time.sleep(0.05)
        proxy = Proxy(port)
        yield proxy
        proxy.close()
    finally:
        server.terminate()
        server.wait()
