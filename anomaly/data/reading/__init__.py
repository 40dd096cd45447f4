"""From the bytes of a log to checked columns: form, roles, times, values, order, overlaps. ``anomaly.data.readers`` is the door.

sources → time_columns, csv_form, long_form → profile (times, values, order) → roles → column_faults
        → chunking (quality_codes, overlaps) → LogChunk
"""
