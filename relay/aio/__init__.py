"""What asyncio lacks: clocks that tests can turn, owned tasks, retry delays, the event loop of a program."""
