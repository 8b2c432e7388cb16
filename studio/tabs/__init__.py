"""One file a tab: each builds its widgets and wires its own events."""
