"""Where a request runs: ``local`` supervises one worker process for a device; ``worker`` is that process."""
