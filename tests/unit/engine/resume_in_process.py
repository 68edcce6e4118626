"""Run as a program: resumes checkpoints in a process of its own and writes the pictures they end in.

    python resume_in_process.py FOLDER

FOLDER holds content.npy, styles.npy and NAME.checkpoint files; NAME.npy is written for each, an
array of (H, W, 3) float32 that is not rounded.
"""

import sys
from pathlib import Path

import numpy as np

from nst_engine import Engine, Style, checkpoint


def main(folder: Path) -> None:
    engine = Engine("cpu", threads=1)
    content = np.load(folder / "content.npy")
    styles = [Style(picture) for picture in np.load(folder / "styles.npy")]
    for file in folder.glob("*.checkpoint"):
        session = engine.resume(checkpoint.loads(file.read_bytes()), content, styles)
        while not session.finished:
            session.advance()
        np.save(file.with_suffix(".npy"), session.state_dict().tensors["image"].numpy())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
