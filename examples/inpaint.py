"""Takes a stone out of a brick wall, and paints a window of coffee into it: demo/inpainted.png.

Run as `python examples/inpaint.py [SERVER]`; without an address it starts a server of its own. The
picture sheet shows the wall with its hole, the hole filled from the wall, and from another picture.
The pictures come with scikit-image: bricks (CC0) and a cup of coffee (CC0, Rachel Michetti).
"""

import numpy as np
from PIL import Image

from demo import FOLDER, SAMPLES, named_or_own_server
from nst_client import Client

SIDE = 256
HOLE = (88, 88, 168, 168)  # left, top, right, bottom, at that side


def inpaint(address: str, side: int = SIDE, iterations: int = 60) -> Image.Image:
    """The damaged wall, the wall mended, and the wall with the hole in another style, side by side."""
    hole = tuple(edge * side // SIDE for edge in HOLE)
    damaged = Image.open(SAMPLES / "brick.png").convert("RGB").resize((side, side))
    damaged.paste((255, 0, 255), hole)
    mask = Image.new("L", damaged.size)
    mask.paste(255, hole)
    with Client(address) as client:
        jobs = [
            client.stylize(damaged, styles, hole=mask, size=side, iterations=iterations)
            for styles in ([], [SAMPLES / "coffee.png"])
        ]
        pictures = [damaged, *(job.result() for job in jobs)]
    return Image.fromarray(np.concatenate([np.asarray(picture) for picture in pictures], 1))


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    result = FOLDER / "inpainted.png"
    with named_or_own_server() as address:
        inpaint(address).save(result)
    print(result)


if __name__ == "__main__":
    main()
