"""Where the words of a prompt attend, and composers side by side."""
