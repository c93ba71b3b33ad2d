"""Worker processes: real ones, with real clients."""
