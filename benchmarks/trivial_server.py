"""A server that answers without reading: what is left is the load generator's own ceiling.

python -m benchmarks.trivial_server PORT
"""

from __future__ import annotations

import select
import socket
import sys

BODY = b"x" * 1500
"""As long as one of our replies."""
ANSWER = (
    b"HTTP/1.1 200 OK\r\nce-id: 1\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\n\r\n%b" % (len(BODY), BODY)
)


def main() -> None:
    """Answer every packet that comes, until killed."""
    listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=512)
    poll, clients = select.epoll(), {}
    poll.register(listener, select.EPOLLIN)
    while True:
        for number, _ in poll.poll():
            if number == listener.fileno():
                client, _ = listener.accept()
                clients[client.fileno()] = client
                poll.register(client, select.EPOLLIN)
            elif clients[number].recv(1 << 16):
                clients[number].sendall(ANSWER)
            else:
                clients.pop(number).close()


if __name__ == "__main__":
    main()
