"""Paints a picture of 128 pixels at 512: the shapes are its own, the detail is the style's. demo/enlarged.png.

Run as `python examples/enlarge.py [SERVER]`; without an address it starts a server of its own. The
picture sheet shows the cat enlarged by bicubic resampling, and painted. The pictures come with
scikit-image: Chelsea the cat (CC0, Stefan van der Walt) and coffee (CC0, Rachel Michetti).
"""

import numpy as np
from PIL import Image

from demo import CONTENT, FOLDER, STYLE, named_or_own_server
from nst_client import Client

SMALL, SIZE = 128, 512


def enlarge(address: str, small: int = SMALL, size: int = SIZE, iterations: int = 100) -> Image.Image:
    """The small picture enlarged plainly, and in style, side by side."""
    content = Image.open(CONTENT).convert("RGB")
    content.thumbnail((small, small))
    with Client(address) as client:
        painted = client.stylize(content, STYLE, size=size, iterations=iterations).result()
    plain = content.resize(painted.size, Image.Resampling.BICUBIC)
    return Image.fromarray(np.concatenate([np.asarray(plain), np.asarray(painted)], 1))


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    result = FOLDER / "enlarged.png"
    with named_or_own_server() as address:
        enlarge(address).save(result)
    print(result)


if __name__ == "__main__":
    main()
