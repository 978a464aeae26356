"""Echo server and client with asyncio streams: the same program works for plain addresses and for names.

    NTCP_BROKER=ntcp://HOST:6060 python examples/echo_asyncio.py

(It is server and client in one process, to be short; in life they are far apart.)
"""

import asyncio

import ntcpsock

HOST, PORT = "echo-asyncio.ntcp", 7000


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()
    await writer.wait_closed()


async def ask(message: str) -> str:
    reader, writer = await asyncio.open_connection(HOST, PORT)
    writer.write(message.encode())
    writer.write_eof()
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer.decode()


async def main() -> None:
    async with await asyncio.start_server(echo, HOST, PORT):
        answers = await asyncio.gather(*[ask(f"hello {number}") for number in range(10)])
        print(f"{len(answers)} answers, the last is {answers[-1]!r}")


if __name__ == "__main__":
    with ntcpsock.patched():
        asyncio.run(main())
