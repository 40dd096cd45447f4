"""From log files to windows: reading, checking, splitting, storing, scaling."""
