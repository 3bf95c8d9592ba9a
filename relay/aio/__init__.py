"""What asyncio lacks: clocks that tests can control, owned tasks, retry delays, a program's event loop."""
