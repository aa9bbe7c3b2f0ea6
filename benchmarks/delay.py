"""A server as if it were farther away: `python -m benchmarks.delay TARGET_PORT MILLISECONDS`.

Passes connections on to a port of this machine; what goes through waits half the milliseconds each way,
without holding up what is behind it. Prints the port that it listens on.
"""

from __future__ import annotations

import asyncio
import sys

_CHUNK = 1 << 18


async def _pass_on(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seconds: float
) -> None:
    loop = asyncio.get_running_loop()
    ended = loop.create_future()

    def write(data: bytes) -> None:
        if not writer.is_closing():
            writer.write(data)

    try:
        while data := await reader.read(_CHUNK):
            loop.call_later(seconds, write, data)
    except ConnectionError:
        pass
    loop.call_later(seconds, ended.set_result, None)
    await ended
    writer.close()


async def _serve(target: int, seconds: float) -> None:
    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", target)
        await asyncio.gather(_pass_on(reader, back, seconds), _pass_on(there, writer, seconds))

    server = await asyncio.start_server(connect, "127.0.0.1", 0, backlog=1000)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), float(sys.argv[2]) / 2000))
