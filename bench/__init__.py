"""Measures the site as hosts and people meet it: real server processes, real connections, durable commits."""
