"""The page at ``/``: a chat with what is served, in one HTML file."""
