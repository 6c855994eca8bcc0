"""Which margins of equivalence the pre-stated test can have.

With a margin of half a unit or more, one elasticity could count as a constant
count and as a constant share at once. Apart from `elasticity`, so that a study
file can be refused without scipy.
"""

# Both are themselves excluded.
LEAST = 0.0
MOST = 0.5
