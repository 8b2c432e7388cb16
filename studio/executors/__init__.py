"""Where a request runs: ``local`` supervises one worker process for a device, and ``worker`` is that process; ``zero`` works inside the page's events."""
