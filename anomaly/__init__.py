"""Rare-event anomaly detection for plant sensor logs: the science, arrays and frames in, arrays and frames out.

Conventions, said once: higher ``anomaly_score`` = more anomalous; a window is ``(lookback T, tags C)``; an
interval is ``[start, end)``; times are int64 UTC microseconds; NaN means missing and is never normal.
"""
