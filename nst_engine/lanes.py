"""How wide compiled loops are."""

# Floats that are worked on at once: those of a register of AVX2. Others have theirs put together or taken apart.
LANES = 8
# Columns of a matrix that lie side by side, so that a row of them is read in one go.
PANEL = 2 * LANES
