"""Work that ends when it is told to."""

import asyncio


class Work:
    """Ends once it is let: fails, or returns the value that it is given."""

    def __init__(self, value: object = None) -> None:
        self.value = value
        self.begun = 0
        self.let = asyncio.Event()

    async def __call__(self) -> object:
        self.begun += 1
        await self.let.wait()
        if self.value is None:
            raise KeyError("away")
        return self.value
