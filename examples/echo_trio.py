"""Echo server and client in one trio program, each with a node of its own in a nursery.

    NTCP_BROKER=ntcp://HOST:6060 python examples/echo_trio.py

Nothing outlives the nursery: cancelling it closes listeners, streams and nodes.
"""

import trio

import ntcpsock.trio

NAME, PORT = "echo-trio", 7000


async def echo(stream: ntcpsock.trio.NTCPStream) -> None:
    async with stream:
        async for chunk in stream:
            await stream.send_all(chunk)
        await stream.send_eof()


async def server(*, task_status: trio.TaskStatus[None]) -> None:
    async with ntcpsock.trio.open_node(name=NAME) as node, trio.open_nursery() as nursery:
        await nursery.start(ntcpsock.trio.serve, echo, PORT)
        print(f"server: {NAME}.ntcp is {node.node_id}")
        task_status.started()


async def client() -> None:
    async with ntcpsock.trio.open_node():
        stream = await ntcpsock.trio.open_stream(NAME, PORT)
        async with stream:
            await stream.send_all(b"hello from trio")
            await stream.send_eof()
            answer = b"".join([bytes(chunk) async for chunk in stream])
            print(f"client: {answer.decode()!r} over a {stream.path.kind} path by {stream.path.technique}")


async def main() -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(server)
        await client()
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
