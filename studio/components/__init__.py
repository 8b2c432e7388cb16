"""What the pages are drawn from: HTML for the queue, the viewer and the videos, and the theme."""
