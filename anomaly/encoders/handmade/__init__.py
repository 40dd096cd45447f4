"""Hand-made features of a window: what an engineer would read off a trend chart, as numbers (METHODS S46 to S49).

``time_features``: level, spread and slope. ``frequency_features``: what oscillates, and how purely. ``rate_features``:
how fast and how far beyond. ``relation_features``: which tags move together, and which follows. ``catch22_features``:
an optional published set. Pure functions of windows ``(B, T, C)``; nothing is trained, no neighbour window is needed.
"""
