"""Winograd's minimal filtering F(4, 3) of Lavin and Gray (arXiv 1509.09308, section 4.3): four outputs of six inputs.

Inputs and a row of the kernel are taken to six points, multiplied there, and the products taken back: six
multiplications where there would be twelve.
"""

ZERO, ONE, MINUS_ONE, TWO, MINUS_TWO, INFINITY = range(6)
# What six neighbours in a row become at the points: whole numbers, which bfloat16 holds.
INPUT_TRANSFORM = (
    (4.0, 0.0, -5.0, 0.0, 1.0, 0.0),
    (0.0, -4.0, -4.0, 1.0, 1.0, 0.0),
    (0.0, 4.0, -4.0, -1.0, 1.0, 0.0),
    (0.0, -2.0, -1.0, 2.0, 1.0, 0.0),
    (0.0, 2.0, -1.0, -2.0, 1.0, 0.0),
    (0.0, 4.0, 0.0, -5.0, 0.0, 1.0),
)
# What a row of the kernel becomes, divided by what the input is spared.
KERNEL_TRANSFORM = (
    (1 / 4, 0.0, 0.0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0.0, 0.0, 1.0),
)
POINTS = len(KERNEL_TRANSFORM)
# Outputs in a line that are computed together.
TILE = 4
