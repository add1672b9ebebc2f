"""A file of requests, answered line by line."""
